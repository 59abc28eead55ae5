"""Which layers a machine uses, and what they support."""

from __future__ import annotations

import shlex
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core import parallel_state
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.transformer_config import TransformerConfig

from flagscale.checks.worker import CPU
from flagscale_testing.ranks.training import MOCK_DATA
from megatron.flagscale import args as our_args
from megatron.flagscale import no_te
from megatron.flagscale.args import engine_parser
from megatron.flagscale.bootstrap import adapt
from megatron.flagscale.checks import argument_problems
from megatron.flagscale.chips import cpu
from megatron.flagscale.layers import spec
from megatron.flagscale.layers.experts import GroupedExperts
from megatron.flagscale.layers.loss import use_our_loss


def parsed(text: str) -> Any:
    """The arguments as a CPU without TransformerEngine takes them."""
    return engine_parser().parse_args([*no_te.DEFAULTS, *cpu.DEFAULTS, *MOCK_DATA, *shlex.split(text)])


def test_without_transformer_engine_the_default_is_torch() -> None:
    assert parsed("").transformer_impl == "torch"
    assert parsed("--transformer-impl local").transformer_impl == "local"


def test_torch_layers_support_what_is_common() -> None:
    usual = """--tensor-model-parallel-size 2 --sequence-parallel --context-parallel-size 2 --qk-layernorm
        --apply-layernorm-1p --reset-attention-mask --cp-comm-type all_gather --window-size 128,0"""
    experts = "--num-experts 4 --disable-bias-linear --moe-grouped-gemm"
    assert argument_problems(parsed(usual), CPU) == []
    assert argument_problems(parsed(f"{usual} {experts}"), CPU) == []


@pytest.mark.parametrize(
    "text", ["--a b --transformer-impl torch --c torch", "--transformer-impl=torch --c torch"]
)
def test_the_engine_is_not_shown_our_choice(text: str) -> None:
    shown = our_args._without_our_choice(text.split())
    assert shown == text.replace("impl torch", "impl local").replace("impl=torch", "impl=local").split()


@pytest.mark.parametrize("grouped", [False, True])
def test_experts_are_computed_together_where_asked(grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_state, "get_pipeline_model_parallel_rank", lambda: 0)
    settings = TransformerConfig(
        num_layers=2,
        hidden_size=64,
        num_attention_heads=4,
        num_moe_experts=2,
        moe_layer_freq=[0, 1],
        moe_grouped_gemm=grouped,
    )
    dense, sparse = spec.layer_spec(SimpleNamespace(transformer=settings)).layer_specs
    assert not hasattr(dense.submodules.mlp.keywords["submodules"], "experts")
    experts = sparse.submodules.mlp.keywords["submodules"].experts
    assert experts.func is (GroupedExperts if grouped else SequentialMLP)


@pytest.mark.parametrize(
    ("cuda", "given", "ours"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"disable_jit_fuser": True}, False),
        (True, {"cross_entropy_loss_fusion": True}, False),
        (True, {"transformer_impl": "local"}, False),
    ],
)
def test_the_loss_is_ours_where_torch_compiles_it(
    cuda: bool, given: dict[str, Any], ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    usual = {"transformer_impl": "torch", "spec": None, "init_by_rank": True, "rope_scaling_factor": 8.0}
    args = SimpleNamespace(**usual | {"cross_entropy_loss_fusion": False, "disable_jit_fuser": False} | given)
    model = SimpleNamespace(transformer=SimpleNamespace(), pre_wrap_hooks=[])
    adapt(model, args)
    assert model.pre_wrap_hooks == ([use_our_loss] if ours else [])


@pytest.mark.parametrize("options", [{}, {"qk_layernorm": True}, {"num_moe_experts": 2}])
def test_every_norm_and_core_of_the_specification_is_ours(
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
