"""The heads of multi-token prediction: layers, embeddings and recompute; and what the expert bias counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core import parallel_state
from megatron.core.transformer.multi_token_prediction import get_mtp_layer_spec
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout
from megatron.core.transformer.transformer_config import TransformerConfig

from flagscale.checks.recompute import recompute_schedule
from megatron.flagscale import recompute
from megatron.flagscale.layers import spec
from megatron.flagscale.layers.expert_bias import _with_exact_counts
from megatron.flagscale.layers.prediction_heads import _of_our_layers, embedding_ranks


def settings(**changes: Any) -> TransformerConfig:
    shape = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "mtp_num_layers": 2}
    return TransformerConfig(**shape | changes)


@pytest.fixture
def last_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_state, "get_pipeline_model_parallel_rank", lambda: 0)
    monkeypatch.setattr(parallel_state, "is_pipeline_last_stage", lambda **_: True)


@pytest.mark.parametrize("freq", [[0, 1], [1, 0]])
def test_heads_have_our_norms_and_attention_and_the_last_layers_kind(
    freq: list[int], last_stage: None
) -> None:
    model = SimpleNamespace(
        transformer=settings(num_moe_experts=2, moe_layer_freq=freq), transformer_layer_spec=spec.layer_spec
    )
    block = _of_our_layers(lambda *_, **__: None)(model, None)
    assert len(block.layer_specs) == 2
    for head in block.layer_specs:
        norms = head.submodules
        assert norms.enorm is norms.hnorm is norms.layer_norm is spec.Norm
        layer = norms.mtp_model_layer.submodules
        assert layer.self_attention.submodules.core_attention is spec.Attention
        assert layer.input_layernorm is layer.pre_mlp_layernorm is spec.Norm
        assert hasattr(layer.mlp.keywords["submodules"], "experts") == bool(freq[-1])


def test_other_layers_keep_the_engines_heads(last_stage: None) -> None:
    asked: list[Any] = []
    model = SimpleNamespace(transformer=settings(), transformer_layer_spec=get_mtp_layer_spec)
    _of_our_layers(lambda *given, **_: asked.append(given))(model, None)
    assert asked == [(model, None)]


@pytest.mark.parametrize(
    ("layout", "heads", "untied", "expected"),
    [
        (None, None, True, [0, 6]),  # as without heads
        (None, 1, True, [0, 6]),
        ("Et|t|mL", 1, True, [0, 6]),
        ("Et|tm|L", 1, True, [0, 3]),  # or the output layer would get gradients of the embeddings
        ("Et|tm|L", 1, False, [0, 3, 6]),
    ],
)
def test_the_ranks_that_hold_embeddings(
    layout: str | None, heads: int | None, untied: bool, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = layout and PipelineParallelLayerLayout(layout, 3)
    transformer = SimpleNamespace(mtp_num_layers=heads, pipeline_model_parallel_layout=cut)
    args = SimpleNamespace(untie_embeddings_and_output_weights=untied)
    monkeypatch.setattr("megatron.training.get_args", lambda: args)
    assert embedding_ranks(transformer, [0, 3, 6]) == expected


class Part(torch.nn.Module):
    """A part of a model that is recomputed by its config, as the engine's block and heads are."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace()
        for name, value in parts.items():
            setattr(self, name, value)

    def forward(self) -> tuple[Any, ...]:
        return (
            self.config.recompute_granularity,
            self.config.recompute_method,
            self.config.recompute_num_layers,
        )


def test_recompute_lists_hold_for_the_heads_of_their_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_state, "get_pipeline_model_parallel_rank", lambda: 1)
    lists = recompute_schedule(
        {
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
            "recompute_granularity_per_stage_micro_batch": [[1, 2, 0], [1, 1, 1, 1, 0]],
            "recompute_num_layers_per_stage_micro_batch": [[2, 2, 2]],
        }
    )
    layer, inner = SimpleNamespace(), SimpleNamespace()
    head = Part(mtp_model_layer=inner)
    chunk = SimpleNamespace(decoder=Part(layers=[layer], vp_stage=None), mtp=SimpleNamespace(layers=[head]))
    recompute._schedule_all(lists, 2, [chunk])
    for layer.current_microbatch, expected in enumerate(["full", None]):
        inner.current_microbatch = layer.current_microbatch
        assert chunk.decoder() == (expected, "uniform", 2)
        assert head() == (expected, "uniform", 1)  # the engine refuses another number for a head


def test_tokens_per_expert_are_counted_exactly_in_bf16() -> None:
    router = torch.nn.Module()
    router.register_buffer("local_tokens_per_expert", torch.zeros(2))
    router.bfloat16()
    for _ in range(300):
        _with_exact_counts(lambda self: None)(router)
        router.local_tokens_per_expert += 1
    assert router.local_tokens_per_expert.tolist() == [300, 300]
    router.local_tokens_per_expert = None
    _with_exact_counts(lambda self: None)(router)
