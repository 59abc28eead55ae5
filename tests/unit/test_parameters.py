"""The planner's numbers of parameters: models whose number is published, and what differs between layers."""

from __future__ import annotations

from typing import Any

import pytest

from flagscale.checks.hetero.layout import HeteroLayout, Mesh
from flagscale.frozen import replace
from flagscale.planner.chips import chip_table, find_chip
from flagscale.planner.model_shape import ModelShape
from flagscale.planner.parameters import layer_parameters, stage_parameters
from flagscale.planner.training import Block, Training

DEEPSEEK_V3 = ModelShape(
    hidden=7168,
    heads=128,
    groups=128,
    head_dim=128,
    ffn=18432,
    vocabulary=129280,
    experts_in=(False,) * 3 + (True,) * 58,
    attention="mla",
    q_lora=1536,
    kv_lora=512,
    qk_nope_dim=128,
    rope_dim=64,
    v_dim=128,
    experts=256,
    topk=8,
    expert_ffn=2048,
    shared_ffn=2048,
    gated=True,
    qk_norm=True,
)
LLAMA_8B = ModelShape(
    hidden=4096,
    heads=32,
    groups=8,
    head_dim=128,
    ffn=14336,
    vocabulary=128256,
    experts_in=(False,) * 32,
    attention="gqa",
    gated=True,
)
GPT2 = ModelShape(
    hidden=768,
    heads=12,
    groups=12,
    head_dim=64,
    ffn=3072,
    vocabulary=50257,
    experts_in=(False,) * 12,
    norm_bias=True,
    linear_bias=True,
    qkv_bias=True,
    tied=True,
    learned_positions=1024,
)
CHIP = find_chip(next(iter(chip_table())))


def job(model: ModelShape, mesh: Mesh, expert_tp: int | None = None, **others: Any) -> Training:
    block = Block(CHIP, 1, expert_tp=expert_tp or mesh.tp)
    return Training(model, HeteroLayout((mesh,)), (block,), 4096, mesh.dp, model.vocabulary, **others)


@pytest.mark.parametrize(
    ("model", "total"),
    [(DEEPSEEK_V3, 671_026_404_352), (LLAMA_8B, 8_030_261_248), (GPT2, 124_439_808)],
    ids=["DeepSeek-V3", "Llama-3-8B", "GPT-2"],
)
def test_one_rank_has_the_published_number(model: ModelShape, total: int) -> None:
    """As published with the weights on Hugging Face; DeepSeek-V3 without its prediction head."""
    training = job(model, Mesh(layers=((model.layers,),)))
    assert stage_parameters(training, training.layout.stages[0]).total == total


def test_the_stages_and_ranks_of_a_job_hold_the_whole_model() -> None:
    mesh = Mesh(tp=2, ep=8, dp=8, pp=2, layers=((20, 11), (20, 10)))
    training = job(DEEPSEEK_V3, mesh, expert_tp=1, implementation="torch")
    first, last = (stage_parameters(training, stage) for stage in training.layout.stages)
    # What tensor parallel ranks do not share: norms and routers.
    copies = 61 * (2 * 7168 + 1536 + 512) + 7168 + 58 * 256 * 7168
    dense = 2 * (first.dense + last.dense) - copies
    assert dense + 8 * (first.expert + last.expert) == 671_026_404_352
    assert {*first.parts} == {"embedding", "dense layers", "expert layers"}
    assert {*last.parts} == {"expert layers", "final norm", "output"}
    assert sum(last.parts.values()) == last.total == last.dense + last.expert


def test_ranks_of_transformer_engine_hold_whole_down_projections() -> None:
    def down(implementation: str) -> dict[str, int]:
        layer = layer_parameters(DEEPSEEK_V3, 4, 8, 1, False, implementation)
        return {one.module: one.elements for one in layer.weights if "down" in one.module}

    whole, parts = down("transformer_engine"), down("torch")
    assert whole == {
        "self_attention.linear_q_down_proj": 1536 * 7168,
        "self_attention.linear_kv_down_proj": 576 * 7168,
    }
    assert parts == {module: size // 4 for module, size in whole.items()}


def test_experts_without_other_ranks_are_reduced_like_all_weights() -> None:
    assert layer_parameters(DEEPSEEK_V3, 4, 1, 4, True).expert == 0
    assert layer_parameters(DEEPSEEK_V3, 4, 1, 1, True).expert == 256 * 3 * 2048 * 7168
    assert layer_parameters(DEEPSEEK_V3, 1, 8, 1, True).expert == 32 * 3 * 2048 * 7168


def test_a_pipeline_has_two_copies_of_tied_embeddings() -> None:
    training = job(GPT2, Mesh(pp=2, layers=((6,), (6,))))
    first, last = (stage_parameters(training, stage).parts for stage in training.layout.stages)
    assert first["embedding"] - 1024 * 768 == last["output"] == 50257 * 768


def test_prediction_heads_bring_an_embedding_that_a_tied_output_shares() -> None:
    heads = replace(LLAMA_8B, prediction_heads=2, tied=True)
    training = job(heads, Mesh(pp=2, layers=((16,), (16,))))
    parts = stage_parameters(training, training.layout.stages[1]).parts
    assert {*parts} == {"dense layers", "final norm", "embedding", "prediction heads"}
    layer = layer_parameters(heads, 1, 1, 1, False).total
    assert parts["prediction heads"] == 2 * (layer + 3 * 4096 + 2 * 4096**2)
    once = job(replace(heads, repeated_head=True), training.layout.meshes[0])
    assert (
        2 * stage_parameters(once, once.layout.stages[1]).parts["prediction heads"]
        == parts["prediction heads"]
    )


def test_each_mesh_divides_the_weights_by_its_own_degrees() -> None:
    meshes = (Mesh(tp=4, layers=((20,),)), Mesh(tp=1, dp=2, layers=((12,),)))
    blocks = (Block(CHIP, 2, expert_tp=4), Block(CHIP, 1))
    training = Training(LLAMA_8B, HeteroLayout(meshes), blocks, 4096, 2, LLAMA_8B.vocabulary)
    first, last = (stage_parameters(training, stage) for stage in training.layout.stages)
    assert first.dense == 20 * layer_parameters(LLAMA_8B, 4, 1, 4, False).dense + 128256 // 4 * 4096
    assert last.dense == 12 * layer_parameters(LLAMA_8B, 1, 1, 1, False).dense + 128256 * 4096 + 4096
