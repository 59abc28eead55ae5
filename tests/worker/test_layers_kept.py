"""What autograd keeps of a layer for the backward pass, to the byte: each storage once, no parameters."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.tensor_parallel.layers import RowParallelLinear
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import GlobalMemoryBuffer
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron.flagscale.layers import rotary
from megatron.flagscale.layers.activation import GatedActivation
from megatron.flagscale.layers.experts import GroupedExperts
from megatron.flagscale.layers.spec import layer_spec
from megatron.flagscale.layers.storage import compact
from tests.worker.test_layers import error
from tests.worker.test_layers_experts import make

ALONE = SimpleNamespace(size=lambda: 1, rank=lambda: 0)
LENGTH, BATCH, HEADS, WIDTH, FFN = 32, 2, 4, 16, 96
HIDDEN, TOKENS = HEADS * WIDTH, LENGTH * BATCH
BF16, FP32 = 2, 4


class Kept:
    """Count the bytes that autograd keeps within the context, apart from the parameters of a module."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.others = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
        self.tensors: dict[int, torch.Tensor] = {}  # keeps their storage, so that no other gets its address
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in self.others:
            self.tensors[tensor.untyped_storage()._cdata] = tensor
        return tensor

    def __enter__(self) -> Kept:
        self.hooks.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.hooks.__exit__(*exc)

    @property
    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tensors.values())


@pytest.fixture(scope="module", autouse=True)
def two_ranks() -> Iterator[None]:
    """A group of two ranks, of which only this one exists: its collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.fixture(autouse=True)
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary embeddings as in a worker, and one pipeline stage."""
    (patch,) = rotary.PATCHES
    name = patch.target.rpartition(":")[2]
    monkeypatch.setattr(rope_utils, name, patch.make(getattr(rope_utils, name)))
    monkeypatch.setattr(parallel_state, "get_pipeline_model_parallel_rank", lambda: 0)
    monkeypatch.setattr(parallel_state, "_GLOBAL_MEMORY_BUFFER", GlobalMemoryBuffer())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")


def settings(**more: Any) -> TransformerConfig:
    usual = {
        "num_layers": 1,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "ffn_hidden_size": FFN,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "add_bias_linear": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "use_cpu_initialization": True,
        "params_dtype": torch.bfloat16,
        "bf16": True,
    }
    return TransformerConfig(**usual | more)


def layer_of(config: TransformerConfig, mlp: dict[str, Any] | None = None) -> torch.nn.Module:
    """Return a layer with our specification; `mlp` replaces parts of its MLP."""
    tp = dist.group.WORLD if config.tensor_model_parallel_size == 2 else ALONE
    spec = layer_spec(SimpleNamespace(transformer=config)).layer_specs[0]
    vars(spec.submodules.mlp.keywords["submodules"]).update(mlp or {})
    groups = SimpleNamespace(tp=tp, cp=ALONE, pp=ALONE, ep=ALONE, expt_tp=ALONE, expt_dp=ALONE)
    layer: torch.nn.Module = build_module(spec, config=config, layer_number=1, pg_collection=groups)
    return layer


def kept_by_layer(rotated: bool = True, **more: Any) -> int:
    config = settings(**more)
    layer = layer_of(config)
    length = LENGTH // config.tensor_model_parallel_size
    hidden = torch.randn(length, BATCH, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    with Kept(layer) as kept:
        angles = torch.randn(LENGTH, 1, 1, WIDTH)
        layer(hidden, attention_mask=None, rotary_pos_emb=angles if rotated else None)
    return kept.bytes


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("key_heads", [2, 4])
def test_a_llama_layer_keeps_each_tensor_once(ranks: int, key_heads: int) -> None:
    """With sequence parallelism, ranks share the norms as well."""
    of_all_ranks = {
        "norms, inputs and outputs": 2 * 2 * TOKENS * HIDDEN * BF16,
        "norms, a number per row": 2 * TOKENS * FP32,
        "rotated queries": TOKENS * HIDDEN * BF16,
        "rotated keys": TOKENS * key_heads * WIDTH * BF16,
        "values": TOKENS * key_heads * WIDTH * BF16,
        "attention, also the input of its projection": TOKENS * HIDDEN * BF16,
        "log-sum-exp": TOKENS * HEADS * FP32,
        "fc1, the input of the activation, which is computed again": TOKENS * 2 * FFN * BF16,
    }
    cosine_and_sine = 2 * LENGTH * WIDTH // 2 * BF16
    more = {"tensor_model_parallel_size": 2, "sequence_parallel": True} if ranks == 2 else {}
    found = kept_by_layer(num_query_groups=key_heads, **more)
    assert found == sum(of_all_ranks.values()) // ranks + cosine_and_sine


def test_a_gpt_layer_keeps_each_tensor_once() -> None:
    expected = {
        "norms, inputs and outputs": 2 * 2 * TOKENS * HIDDEN * BF16,
        "norms, two numbers per row, which torch's CPU kernel rounds": 2 * 2 * TOKENS * BF16,
        "queries, keys and values, as they come from one linear layer": 3 * TOKENS * HIDDEN * BF16,
        "attention, also the input of its projection": TOKENS * HIDDEN * BF16,
        "log-sum-exp": TOKENS * HEADS * FP32,
        "fc1, the input of the activation": TOKENS * FFN * BF16,
        "activation, the input of fc2": TOKENS * FFN * BF16,
    }
    more = {"normalization": "LayerNorm", "add_bias_linear": True}
    found = kept_by_layer(False, **more, gated_linear_unit=False, activation_func=F.gelu)
    assert found == sum(expected.values())


def grouped(**more: Any) -> GroupedExperts:
    return make(GroupedExperts, 3, params_dtype=torch.bfloat16, bf16=True, **more)


@pytest.mark.parametrize("gated", [True, False])
def test_grouped_experts_keep_the_inputs_of_the_first_product_and_of_the_activation(gated: bool) -> None:
    experts = make(GroupedExperts, 3, params_dtype=torch.bfloat16, bf16=True, gated_linear_unit=gated)
    tokens = torch.randn(TOKENS, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    probabilities = torch.rand(TOKENS, requires_grad=True)
    with Kept(experts) as kept:
        experts(tokens, torch.tensor([TOKENS // 2, 0, TOKENS // 2]), probabilities)
    width = experts.config.moe_ffn_hidden_size
    expected = {
        "tokens": TOKENS * HIDDEN * BF16,
        "weights of the tokens": TOKENS * FP32,
        "fc1, the input of the activation": TOKENS * width * (2 if gated else 1) * BF16,
    }
    assert kept.bytes == sum(expected.values())


@pytest.mark.parametrize(
    "more",
    [{}, {"activation_func": F.gelu}, {"activation_func_clamp_value": 0.5, "glu_linear_offset": 1.0}],
)
def test_a_gated_activation_keeps_its_input(more: dict[str, Any]) -> None:
    activation = GatedActivation(settings(**more))
    inputs = torch.randn(TOKENS, 2 * FFN, requires_grad=True)
    with Kept(activation) as kept:
        activation(inputs)
    assert [*map(id, kept.tensors.values())] == [id(inputs)]


def test_layers_share_one_cosine_and_sine() -> None:
    angles = torch.randn(LENGTH, 1, 1, WIDTH)
    layers = torch.nn.Module()
    with Kept(layers) as kept:
        for _ in range(3):
            heads = torch.randn(LENGTH, BATCH, HEADS, WIDTH, requires_grad=True)
            rope_utils._apply_rotary_pos_emb_bshd(heads, angles)
    assert kept.bytes == angles.nbytes  # a cosine and a sine per pair


def test_a_part_of_a_storage_is_copied_if_nothing_else_uses_the_rest() -> None:
    whole = torch.randn(6, 4)
    first, second = whole[:, :2], whole[:, 2:]
    assert all(one is other for one, other in zip(compact(first, second), (first, second), strict=True))
    (alone,) = compact(second)
    assert alone.untyped_storage().nbytes() == alone.nbytes
    assert torch.equal(alone, second)
    with torch.no_grad():
        assert compact(second)[0] is second


@pytest.mark.parametrize("more", [{}, {"add_bias_linear": True}, {"activation_func": F.gelu}])
def test_a_layer_computes_the_same_as_with_megatrons_mlp(more: dict[str, Any]) -> None:
    ends = []
    for megatrons in (True, False):
        config = settings(params_dtype=torch.float64, bf16=False, **more)
        layer = layer_of(config, {"linear_fc2": RowParallelLinear} if megatrons else None).double()
        config.use_te_activation_func = not megatrons
        torch.manual_seed(0)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)
        hidden = torch.randn(LENGTH, BATCH, HIDDEN, dtype=torch.float64, requires_grad=True)
        out, _ = layer(hidden, attention_mask=None)
        out.square().sum().backward()
        ends.append((out, hidden.grad, *(parameter.grad for parameter in layer.parameters())))
    for expected, found in zip(*ends, strict=True):
        assert error(found, expected.detach()) <= 1e-14
