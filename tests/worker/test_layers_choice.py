"""The choice of layers on a machine, and the features that they support."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core import parallel_state
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

from flagscale.checks import gemma
from flagscale.checks.worker import Capabilities
from flagscale.errors import UserError
from flagscale.run import env
from flagscale_testing.ranks.training import MOCK_DATA
from megatron.flagscale import args as our_args
from megatron.flagscale import bootstrap, no_te
from megatron.flagscale.args import engine_parser
from megatron.flagscale.bootstrap import adapt
from megatron.flagscale.checks import argument_problems
from megatron.flagscale.chips import chip
from megatron.flagscale.chips.cpu import CPU
from megatron.flagscale.chips.cuda import CUDA
from megatron.flagscale.layers import spec
from megatron.flagscale.layers.experts import BiasedExperts, GroupedExperts
from megatron.flagscale.layers.loss import use_our_loss

MACHINE = Capabilities(has_chip=False, has_fused_layers=False, backend=CPU.backend)


def parsed(text: str) -> Any:
    """Return the arguments as parsed on a CPU without TransformerEngine."""
    defaults = (*no_te.DEFAULTS, *CPU.defaults, f"--distributed-backend={CPU.backend}")
    return engine_parser().parse_args([*defaults, *MOCK_DATA, *shlex.split(text)])


@pytest.fixture
def named_chip(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Return a function that names a chip in the environment, as the launcher does."""

    def name(chosen: str) -> None:
        monkeypatch.setenv(env.CHIP, chosen)
        chip.cache_clear()

    yield name
    chip.cache_clear()


def test_a_rank_has_the_chip_that_the_launcher_names(named_chip: Callable[[str], None]) -> None:
    named_chip("nvidia")
    assert chip() is CUDA
    named_chip("cpu")
    assert chip() is CPU
    named_chip("nvidai")
    with pytest.raises(UserError, match="unknown chip `nvidai`") as raised:
        chip()
    assert raised.value.problems[0].hint == "did you mean `nvidia`?"
    named_chip("")
    assert chip() is (CUDA if torch.cuda.is_available() else CPU)


ENVIRONMENT = """
import os, sys
from contextlib import suppress
from flagscale.errors import UserError
from megatron.flagscale.bootstrap import prepare_engine
with suppress(UserError):
    prepare_engine(sys.argv[1:])
print(os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "given", "expected"),
    [
        ("--bf16", {}, "1"),
        ("--bf16", {"CUDA_DEVICE_MAX_CONNECTIONS": "8"}, "8"),
        ("--use-megatron-fsdp", {}, "None"),
    ],
)
def test_a_worker_without_a_launcher_has_the_environment_of_the_chip(
    argument: str, given: dict[str, str], expected: str
) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_DEVICE_MAX_CONNECTIONS"}
    words = [sys.executable, "-c", ENVIRONMENT, *MOCK_DATA, argument]
    done = subprocess.run(words, env={**kept, **given}, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == [expected], done.stderr


@pytest.mark.parametrize(
    ("impl", "latent", "expected"),
    [("torch", True, True), ("torch", False, False), ("transformer_engine", True, False)],
)
def test_latent_attention_of_torch_layers_does_not_use_fused_rotation(
    impl: str, latent: bool, expected: bool
) -> None:
    args = SimpleNamespace(transformer_impl=impl, multi_latent_attention=latent, on_bad_loss="stop")
    assert ("--no-rope-fusion" in bootstrap._implied(args)) is expected


def test_without_transformer_engine_the_default_is_torch() -> None:
    assert parsed("").transformer_impl == "torch"
    assert parsed("--transformer-impl local").transformer_impl == "local"


def test_torch_layers_support_common_features() -> None:
    usual = """--tensor-model-parallel-size 2 --sequence-parallel --context-parallel-size 2 --qk-layernorm
        --apply-layernorm-1p --reset-attention-mask --cp-comm-type all_gather --window-size 128,0"""
    experts = "--num-experts 4 --disable-bias-linear --moe-grouped-gemm"
    assert argument_problems(parsed(usual), MACHINE) == []
    assert argument_problems(parsed(f"{usual} {experts}"), MACHINE) == []


@pytest.mark.parametrize(
    "text", ["--a b --transformer-impl torch --c torch", "--transformer-impl=torch --c torch"]
)
def test_our_choice_is_hidden_from_the_engine(text: str) -> None:
    shown = our_args._without_our_choices(text.split())
    assert shown == text.replace("impl torch", "impl local").replace("impl=torch", "impl=local").split()


@pytest.mark.parametrize(
    ("grouped", "biased", "kind"),
    [(False, False, SequentialMLP), (False, True, BiasedExperts), (True, False, GroupedExperts)],
)
def test_experts_are_computed_together_if_requested(
    grouped: bool, biased: bool, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel_state, "get_pipeline_model_parallel_rank", lambda: 0)
    settings = TransformerConfig(
        num_layers=2,
        hidden_size=64,
        num_attention_heads=4,
        num_moe_experts=2,
        moe_layer_freq=[0, 1],
        moe_grouped_gemm=grouped,
        add_bias_linear=biased,
    )
    dense, sparse = spec.layer_spec(SimpleNamespace(transformer=settings)).layer_specs
    assert not hasattr(dense.submodules.mlp.keywords["submodules"], "experts")
    experts = sparse.submodules.mlp.keywords["submodules"].experts
    assert experts.func is kind


@pytest.mark.parametrize(
    ("name", "given", "ours"),
    [
        ("nvidia", {}, True),
        ("cpu", {}, False),
        ("nvidia", {"disable_jit_fuser": True}, False),
        ("nvidia", {"cross_entropy_loss_fusion": True}, False),
        ("nvidia", {"transformer_impl": "local"}, False),
    ],
)
def test_our_loss_is_used_if_torch_compiles_it(
    name: str, given: dict[str, Any], ours: bool, named_chip: Callable[[str], None]
) -> None:
    named_chip(name)
    usual = {"transformer_impl": "torch", "spec": None, "init_by_rank": True, "rope_scaling_factor": 8.0}
    usual |= {"norm_position": "pre", "qk_layernorm_across_heads": False}
    usual |= dict.fromkeys(gemma.SETTINGS)
    unset = ("multi_latent_attention", "cross_entropy_loss_fusion", "disable_jit_fuser")
    args = SimpleNamespace(**usual | dict.fromkeys(unset, False) | given)
    model = SimpleNamespace(transformer=SimpleNamespace(mtp_num_layers=None), pre_wrap_hooks=[])
    adapt(model, args)
    assert model.pre_wrap_hooks == ([use_our_loss] if ours else [])


@pytest.mark.parametrize("options", [{}, {"qk_layernorm": True}, {"num_moe_experts": 2}])
def test_the_layer_specification_uses_our_norms_and_attention(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel_state, "get_pipeline_model_parallel_rank", lambda: 0)
    settings = TransformerConfig(num_layers=2, hidden_size=64, num_attention_heads=4, **options)
    block = spec.layer_spec(SimpleNamespace(transformer=settings))
    assert block.layer_norm is spec.Norm
    assert len(block.layer_specs) == 2
    for layer in block.layer_specs:
        attention = layer.submodules.self_attention.submodules
        assert attention.core_attention is spec.Attention
        assert layer.submodules.input_layernorm is layer.submodules.pre_mlp_layernorm is spec.Norm
        assert attention.q_layernorm is (spec.Norm if options.get("qk_layernorm") else IdentityOp)


@pytest.mark.parametrize("norms", [False, True])
def test_latent_attention_uses_our_layer_core_and_norms(norms: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_state, "get_pipeline_model_parallel_rank", lambda: 0)
    settings = MLATransformerConfig(num_layers=2, hidden_size=64, num_attention_heads=4, qk_layernorm=norms)
    for layer in spec.layer_spec(SimpleNamespace(transformer=settings)).layer_specs:
        attention = layer.submodules.self_attention
        assert attention.module is spec.LatentAttention
        assert attention.submodules.core_attention is spec.LatentCore
        norm = spec.Norm if norms else IdentityOp
        assert attention.submodules.q_layernorm is attention.submodules.kv_layernorm is norm
