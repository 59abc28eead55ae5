"""Which layers a machine uses, and what each kind refuses."""

from __future__ import annotations

import shlex
from types import SimpleNamespace
from typing import Any

import pytest
from megatron.core import parallel_state
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron.flagscale import args as our_args
from megatron.flagscale.args import engine_parser
from megatron.flagscale.layers import spec
from megatron.flagscale.patches import has_te_or_apex
from megatron.flagscale.platform import _impossible_with_torch_layers, _impossible_without_te
from megatron.flagscale.platforms import no_te


def parsed(text: str) -> Any:
    return engine_parser().parse_args([*no_te.DEFAULTS, *shlex.split(text)])


def test_without_transformer_engine_the_default_is_torch() -> None:
    assert parsed("").transformer_impl == "torch"
    assert parsed("--transformer-impl local").transformer_impl == "local"


def test_torch_layers_refuse_nothing_that_is_common() -> None:
    usual = """--tensor-model-parallel-size 2 --sequence-parallel --context-parallel-size 2 --qk-layernorm
        --apply-layernorm-1p --reset-attention-mask --cp-comm-type all_gather --window-size 128,0"""
    args = parsed(usual)
    assert not _impossible_with_torch_layers(args)
    assert not _impossible_without_te(args)


@pytest.mark.parametrize(
    "text",
    [
        "--cp-comm-type a2a --context-parallel-size 2",
        "--attention-backend flash",
        "--softmax-type learnable",
        "--qk-clip",
        "--multi-latent-attention",
        "--fp8-format hybrid",
        "--tp-comm-overlap",
        "--reset-attention-mask --no-create-attention-mask-in-dataloader",
        "--use-cpu-initialization",
    ],
)
def test_torch_layers_refuse_what_they_would_ignore(text: str) -> None:
    (problem,) = _impossible_with_torch_layers(parsed(text))
    assert text.split()[0] in str(problem)


@pytest.mark.skipif(has_te_or_apex(), reason="TransformerEngine is here")
@pytest.mark.parametrize(
    "text", ["--sequence-parallel --tensor-model-parallel-size 2", "--context-parallel-size 2"]
)
def test_megatrons_local_layers_have_neither_sequence_nor_context_parallel(text: str) -> None:
    (problem,) = _impossible_without_te(parsed(f"--transformer-impl local {text}"))
    assert "--transformer-impl torch does not need it" in str(problem)


@pytest.mark.parametrize(
    "text", ["--a b --transformer-impl torch --c torch", "--transformer-impl=torch --c torch"]
)
def test_the_engine_is_not_shown_our_choice(text: str) -> None:
    shown = our_args._without_our_choice(text.split())
    assert shown == text.replace("impl torch", "impl local").replace("impl=torch", "impl=local").split()


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
