"""Latent attention agrees with plain float64 arithmetic, and keeps neither keys nor values."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_submodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import MLATransformerConfig
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron.flagscale.layers import latent_core, spec
from megatron.flagscale.layers.latent import LatentAttention
from megatron.flagscale.layers.latent_core import LatentCore
from tests.worker.test_layers import LIMITS, as_leaves, causal, documents, error, inputs, reference

HEADS, HIDDEN, LENGTH, BATCH = 4, 32, 24, 2
PLAIN, ROTARY, VALUE, Q_RANK, KV_RANK = 16, 8, 12, 20, 28
YARN = {"rope_type": "yarn", "rotary_scaling_factor": 40.0, "mscale": 0.7, "mscale_all_dim": 0.5}
KINDS: dict[str, dict[str, Any]] = {
    "V3": {"q_lora_rank": Q_RANK, "qk_layernorm": True, "rope_type": "rope"},
    "V2-Lite": {"q_lora_rank": None, "qk_layernorm": True, **YARN},
    "no norms": {"q_lora_rank": Q_RANK, "rope_type": "rope", "rotary_percent": 0.5},
    "recompute": {
        "q_lora_rank": Q_RANK,
        "qk_layernorm": True,
        "rope_type": "rope",
        "recompute_granularity": "selective",
        "recompute_modules": ["mla_up_proj"],
    },
}


def settings(**more: Any) -> MLATransformerConfig:
    return MLATransformerConfig(
        num_layers=1,
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        kv_lora_rank=KV_RANK,
        qk_head_dim=PLAIN,
        qk_pos_emb_head_dim=ROTARY,
        v_head_dim=VALUE,
        add_bias_linear=False,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        **more,
    )


@pytest.fixture(autouse=True, scope="module")
def groups() -> Iterator[None]:
    """Form the groups of a single rank."""
    dist.init_process_group("fake", rank=0, world_size=1, store=FakeStore())
    parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
    yield
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core.tensor_parallel import random

    from megatron.flagscale import no_te

    monkeypatch.setattr(torch.cuda, "current_device", lambda: torch.device("cpu"))
    # Recomputing keeps the states of the generators.
    monkeypatch.setattr(random, "_get_all_rng_states", lambda: ())
    monkeypatch.setattr(random, "_set_all_rng_states", lambda: None)
    monkeypatch.setattr(random, "_get_share_storage", no_te._copies_bytes(random._get_share_storage))
    init = no_te._without_fp8(random.CheckpointWithoutOutput.__init__)
    monkeypatch.setattr(random.CheckpointWithoutOutput, "__init__", init)


def layer(dtype: torch.dtype, **more: Any) -> LatentAttention:
    config = settings(**more)
    submodules = get_gpt_layer_local_submodules(
        multi_latent_attention=True, qk_layernorm=config.qk_layernorm, normalization="RMSNorm"
    ).self_attention.submodules
    submodules.core_attention = LatentCore
    if config.qk_layernorm:
        submodules.q_layernorm = submodules.kv_layernorm = spec.Norm
    torch.manual_seed(0)
    made = LatentAttention(config, submodules, 1, AttnMaskType.causal)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.to(dtype)


def textbook(
    config: MLATransformerConfig, weights: dict[str, torch.Tensor], hidden: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Return multi-latent attention as in DeepSeek-V2's paper, from `[s, b, hidden]`."""

    def norm(latent: torch.Tensor, name: str) -> torch.Tensor:
        weight = weights.get(f"{name}_layernorm.weight")
        if weight is None:
            return latent
        return latent / latent.square().mean(-1, keepdim=True).add(config.layernorm_epsilon).sqrt() * weight

    def project(rows: torch.Tensor, name: str) -> torch.Tensor:
        return rows @ weights[f"linear_{name}.weight"].T

    q_latent = norm(project(hidden, "q_down_proj"), "q") if config.q_lora_rank else None
    q = project(hidden, "q_proj") if q_latent is None else project(q_latent, "q_up_proj")
    kv_latent, k_rotary = project(hidden, "kv_down_proj").split([KV_RANK, ROTARY], -1)
    kv = project(norm(kv_latent, "kv"), "kv_up_proj").unflatten(-1, (HEADS, -1))
    q = q.unflatten(-1, (HEADS, -1))
    cos, sin, scale = angles(config, hidden.size(0))
    q = torch.cat((q[..., :PLAIN], turned(q[..., PLAIN:], cos, sin)), -1)
    k_rotary = turned(k_rotary[:, :, None], cos, sin).expand(-1, -1, HEADS, -1)
    k = torch.cat((kv[..., :PLAIN], k_rotary), -1)
    out = reference(q, k, kv[..., PLAIN:], mask, scale)
    return project(out, "proj")


def angles(config: MLATransformerConfig, length: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return cosine and sine, `[s, 1, 1, angles]`, and the scale of the scores."""
    width = int(ROTARY * config.rotary_percent) if config.rope_type == "rope" else ROTARY
    frequency = config.rotary_base ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    factor = score = 1.0
    if config.rope_type == "yarn":
        log, base, scaling = math.log, config.rotary_base, config.rotary_scaling_factor
        low, high = (
            width * log(config.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * log(base))
            for turns in (config.beta_fast, config.beta_slow)
        )
        low, high = max(math.floor(low), 0), min(math.ceil(high), width - 1)
        ramp = ((torch.arange(width // 2) - low) / max(high - low, 0.001)).clamp(0, 1)
        frequency = frequency / scaling * ramp + frequency * (1 - ramp)
        score = 0.1 * config.mscale_all_dim * log(scaling) + 1
        factor = (0.1 * config.mscale * log(scaling) + 1) / score
    angle = (torch.arange(length)[:, None] * frequency)[:, None, None]
    return angle.cos() * factor, angle.sin() * factor, score * score / math.sqrt(PLAIN + ROTARY)


def turned(pairs: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return neighbouring pairs turned, as complex numbers; the rest follows unchanged."""
    width = 2 * cos.size(-1)
    numbers = torch.view_as_complex(pairs[..., :width].unflatten(-1, (-1, 2)).contiguous())
    return torch.cat(
        (torch.view_as_real(numbers * torch.complex(cos, sin)).flatten(-2), pairs[..., width:]), -1
    )


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [False, True])
def test_latent_attention_is_exact(dtype: torch.dtype, kind: str, packed: bool) -> None:
    module = layer(dtype, **KINDS[kind])
    starts, mask = documents(BATCH, LENGTH) if packed else (None, causal(LENGTH, LENGTH))
    hidden, grad = (tensor.to(dtype).double() for tensor in inputs(*[(LENGTH, BATCH, HIDDEN)] * 2))
    (found,) = as_leaves([hidden], dtype)
    out, _ = module(found, starts)
    out.backward(grad.to(dtype))
    weights = {
        name: parameter.detach().double().requires_grad_() for name, parameter in module.named_parameters()
    }
    (exact,) = as_leaves([hidden], torch.float64)
    expected = textbook(module.config, weights, exact, mask)
    expected.backward(grad)
    limit = LIMITS[dtype] * 3  # several roundings in a row
    assert error(out, expected.detach()) <= limit
    assert exact.grad is not None
    assert error(found.grad, exact.grad) <= limit
    for name, parameter in module.named_parameters():
        assert error(parameter.grad, weights[name].grad) <= limit, name


@pytest.mark.parametrize("kind", ["plain", "documents", "window", "dropout"])
def test_neither_keys_nor_values_are_kept(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    join = latent_core.join

    def watched(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        joined = join(*given)
        made.extend(weakref.ref(tensor.untyped_storage()) for tensor in joined)
        return joined

    monkeypatch.setattr(latent_core, "join", watched)
    config = settings(window_size=(5, 0) if kind == "window" else None)
    core = LatentCore(
        config,
        1,
        AttnMaskType.causal,
        "self",
        0.1 if kind == "dropout" else 0.0,
    )
    if kind == "dropout":
        monkeypatch.setattr(
            "megatron.core.tensor_parallel.get_cuda_rng_tracker",
            lambda: SimpleNamespace(fork=lambda: torch.random.fork_rng(devices=[])),
        )
    shapes = [(LENGTH, BATCH, HEADS, PLAIN + ROTARY), (LENGTH, BATCH, HEADS, PLAIN + VALUE)]
    leaves = as_leaves(inputs(*shapes, (LENGTH, BATCH, 1, ROTARY)), torch.float32)
    out = core(*leaves, documents(BATCH, LENGTH)[0] if kind == "documents" else None)
    assert [storage() for storage in made] == [None, None]
    out.sum().backward()
    assert all(leaf.grad is not None for leaf in leaves)
    assert len(made) == 4  # joined once more
