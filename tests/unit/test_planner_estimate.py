"""The whole estimate of a job: three sums of memory, the split of a step, intervals, what limits it."""

from __future__ import annotations

from typing import Any

import pytest

from flagscale.checks.hetero.layout import HeteroLayout, Mesh
from flagscale.frozen import replace
from flagscale.planner.calibration import Calibration
from flagscale.planner.chips import Chip, Link, find_chip
from flagscale.planner.estimate import Estimate, estimate
from tests.unit.test_planner_reading import read

H100, A800, T4 = (find_chip(name) for name in ("H100", "A800-80", "T4"))
LARGE = {
    "num_layers": 32,
    "hidden_size": 4096,
    "ffn_hidden_size": 11008,
    "num_attention_heads": 32,
    "seq_length": 4096,
    "max_position_embeddings": 4096,
    "swiglu": True,
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "untie_embeddings_and_output_weights": True,
    "vocab_size": 32000,
    "micro_batch_size": 1,
    "global_batch_size": 64,
    "use_distributed_optimizer": True,
}
EXPERTS = {
    "num_experts": 8,
    "moe_router_topk": 2,
    "moe_ffn_hidden_size": 2048,
    "moe_layer_freq": "[0]*2+[1]*30",
}
LATENT = {
    "multi_latent_attention": True,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_head_dim": 128,
    "qk_pos_emb_head_dim": 64,
    "v_head_dim": 128,
}
UNEQUAL = HeteroLayout(
    (
        Mesh(tp=4, dp=2, pp=2, layers=((10,), (12,)), type="H100"),
        Mesh(tp=2, dp=4, pp=1, layers=((10,),), type="A800-80"),
    )
)
JOBS: dict[str, tuple[int, dict[str, Any]]] = {
    "dense": (8, {}),
    "groups of queries": (8, {"group_query_attention": True, "num_query_groups": 8}),
    "latent attention": (8, LATENT),
    "experts": (8, {**EXPERTS, "expert_model_parallel_size": 4}),
    "prediction heads": (8, {"mtp_num_layers": 1, "position_embedding_type": "rope"}),
    "pipeline": (8, {"pipeline_model_parallel_size": 4, "tensor_model_parallel_size": 2}),
    "interleaved": (
        8,
        {
            "pipeline_model_parallel_size": 4,
            "tensor_model_parallel_size": 2,
            "num_virtual_stages_per_pipeline_rank": 2,
        },
    ),
    "context": (8, {"context_parallel_size": 4}),
    "full recompute": (
        8,
        {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
    ),
    "selective recompute": (
        8,
        {"recompute_granularity": "selective", "recompute_modules": ["core_attn", "mlp"]},
    ),
    "fp8": (8, {"fp8": "hybrid"}),
    "several hosts": (32, {"tensor_model_parallel_size": 8}),
    "torch layers": (8, {"transformer_impl": "torch"}),
}


def of(world_size: int = 8, chips: tuple[Chip, ...] = (H100,), **changes: Any) -> Estimate:
    return estimate(read(world_size, chips, **{**LARGE, **changes}))


def unequal(**changes: Any) -> Estimate:
    return of(24, (H100, A800), hetero_layout=UNEQUAL.to_json(), **changes)


@pytest.mark.parametrize("name", JOBS)
def test_every_kind_of_job_has_a_whole_estimate(name: str) -> None:
    world_size, changes = JOBS[name]
    found = of(world_size, **changes)
    assert [one.stage.index for one in found.stages] == [*range(len(found.training.layout.stages))]
    for one in found.stages:
        assert 0 < one.memory.allocated < one.memory.reserved < one.memory.device
        assert one.low < one.memory.device < one.high
        assert sum(term.nbytes for term in one.memory.terms) == pytest.approx(one.memory.device)
    speed = found.speed
    assert speed
    assert 0 < speed.low < speed.high
    assert 0.01 < speed.mfu < 0.9
    assert speed.tokens_s * speed.step.seconds == pytest.approx(64 * 4096)
    assert all(part >= 0 for part in speed.parts.values())
    assert sum(speed.parts.values()) == pytest.approx(speed.step.seconds, rel=0.02), speed.parts


def test_meshes_have_chips_of_their_own() -> None:
    found = unequal()
    assert [one.chip.name for one in found.stages] == ["H100", "H100", "A800-80"]
    assert found.speed
    assert found.speed.peak_flop_s == 16 * 989e12 + 8 * A800.flop_s["bfloat16"]
    assert found.speed.devices == 24


def test_memory_limits_a_job_that_does_not_fit() -> None:
    found = of(1)
    assert (found.fits, found.surely_fits, found.limit) == (False, False, "memory")
    assert found.speed, "it is estimated all the same"
    small = of(8, tensor_model_parallel_size=8)
    assert (small.fits, small.surely_fits) == (True, True)
    assert small.limit == max(small.speed.parts, key=small.speed.parts.__getitem__) if small.speed else False


def test_a_job_between_its_estimate_and_the_95_percent_side_may_not_fit() -> None:
    found = of(8)
    between = (found.stages[0].memory.device + found.stages[0].high) / 2
    narrow = of(8, (replace(H100, memory_bytes=between),))
    assert (narrow.fits, narrow.surely_fits) == (True, False)


def test_the_fullest_stage_is_that_of_the_largest_share() -> None:
    found = of(8, pipeline_model_parallel_size=4)
    assert found.fullest.stage.index == 0
    wide = replace(A800, memory_bytes=10 * A800.memory_bytes)
    assert estimate(read(24, (H100, wide), hetero_layout=UNEQUAL.to_json(), **LARGE)).fullest.stage.mesh == 0


def test_a_calibration_moves_time_and_memory() -> None:
    job = read(8, **LARGE)
    plain, found = estimate(job), estimate(job, Calibration(scale=2.0, memory_bytes=2**30))
    assert found.is_calibrated
    assert plain.speed
    assert found.speed
    assert found.speed.step.seconds == pytest.approx(2 * plain.speed.step.seconds, rel=1e-6)
    assert found.stages[0].memory.device == plain.stages[0].memory.device + 2**30
    assert "measured beyond these" in {term.name for term in found.stages[0].memory.terms}


def missing(chip: Chip, world_size: int = 8, **changes: Any) -> str:
    return "\n".join(problem.what for problem in of(world_size, (chip,), **changes).missing)


def test_only_figures_that_are_used_are_missing() -> None:
    assert missing(H100, 64) == ""
    lonely = replace(H100, inside=Link(), outside=Link())
    assert missing(lonely, 1) == ""
    assert "`H100` inside a node is not known" in missing(lonely)
    near = replace(H100, outside=Link())
    assert missing(near, 8, tensor_model_parallel_size=8) == ""
    assert "`H100` between nodes is not known" in missing(near, 16)
    assert "in bfloat16 is not known" in missing(replace(H100, flop_s={}))
    only_fp8 = replace(H100, flop_s={"fp8": 1e15})
    assert "in bfloat16 is not known" in missing(only_fp8, fp8="hybrid"), "attention is not computed in fp8"
    assert "bandwidth of the memory" in missing(replace(H100, hbm_bytes_s=0.0))


def test_without_a_figure_memory_is_estimated_all_the_same() -> None:
    found = of(16, (T4,))
    assert found.speed is None
    assert found.missing
    assert found.stages[0].memory.device > 0
    assert (found.fits, found.limit) == (False, "memory")
    big = of(16, (replace(T4, memory_bytes=1e12),))
    assert (big.fits, big.limit) == (True, "")
