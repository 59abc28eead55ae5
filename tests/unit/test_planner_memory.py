"""The memory of ranks: figures by hand, properties that always hold, and published measurements."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from itertools import accumulate
from statistics import mean
from typing import Any

import pytest

from benchmarks.measured_rows import Row, read_rows
from flagscale.checks.hetero.layout import HeteroLayout, Mesh, Stage
from flagscale.checks.recompute import RecomputeSchedule, Setting
from flagscale.errors import UserError
from flagscale.frozen import replace
from flagscale.planner.memory.stage_memory import StageMemory, memory
from flagscale.planner.parameters import stage_parameters
from flagscale.planner.schedule import order
from flagscale.planner.training import Numerics, Recompute, Training
from flagscale_testing.layer_memory.sides import ROOT
from tests.unit.trainings import shape, training

MIB = 2**20
LLAMA_70B = shape(2, hidden=8192, heads=64, groups=8, ffn=28672, vocabulary=128256)
"""Two layers of it."""


def terms(of: StageMemory, *kinds: str) -> dict[str, float]:
    return {term.name: term.nbytes for term in of.terms if not kinds or term.kind in kinds}


def one_stage(**changes: Any) -> StageMemory:
    (stage,) = memory(training(**{"model": LLAMA_70B, "tp": 2, "dp": 4, **changes}))
    return stage


def test_a_layer_of_transformer_engine_by_hand() -> None:
    # Norms and what is behind them 4 x 32, queries, keys and values 40, output 32, log-sum-exp 0.5, gate and
    # up 224, their product 112; a deviation per row of two norms.
    expected = 2 * ((128 + 40 + 32 + 0.5 + 224 + 112) * MIB + 2 * 2048 * 4)
    assert terms(one_stage())["dense layers"] == expected


def test_attention_that_stores_scores() -> None:
    more = terms(one_stage(stores_scores=True))["dense layers"] - terms(one_stage())["dense layers"]
    assert more == 2 * (32 * 4096**2 * 2 - 0.5 * MIB)
    dropped = one_stage(stores_scores=True, model=replace(LLAMA_70B, attention_dropout=True))
    # The weights, those after dropout, and a mask of one byte.
    scores = 2 * (32 * 4096**2 * 5 - 0.5 * MIB)
    assert terms(dropped)["dense layers"] == terms(one_stage())["dense layers"] + scores


def test_what_is_held_throughout_a_step() -> None:
    job = training(model=LLAMA_70B, tp=2, dp=4)
    (stage,) = memory(job)
    elements = stage_parameters(job, job.layout.stages[0]).total
    held = terms(stage, "static")
    assert (held["parameters"], held["gradients"]) == (2 * elements, 4 * elements)
    assert held["optimizer"] == 12 * elements / 4
    (whole,) = memory(replace(job, numerics=Numerics()))
    assert terms(whole)["optimizer"] == 12 * elements
    # One placeholder for each of qkv, proj, fc1, fc2 and the output layer.
    placeholders = 5120 * 8192 + 8192 * 4096 + 28672 * 8192 + 8192 * 14336 + 64128 * 8192
    assert held["placeholders of weight gradients"] == 2 * placeholders


def test_experts_have_copies_of_their_own() -> None:
    job = training(model=shape(2, experts=8), ep=4, dp=8)
    (stage,) = memory(job)
    of = stage_parameters(job, job.layout.stages[0])
    assert terms(stage)["optimizer"] == 12 * (of.dense / 8 + of.expert / 2)


def test_the_loss() -> None:
    logits = 4096 * 64128
    ours = one_stage()
    assert terms(ours)["logits"] == 4 * logits
    # Beside the float copy, the logits themselves.
    assert terms(ours, "transient") == {"end of the forward pass": 2 * logits}
    compiled = one_stage(fused_loss=True)
    assert terms(compiled, "transient") == {"end of the forward pass": 6 * logits}
    torch = one_stage(implementation="torch")
    assert terms(torch)["logits"] == 2 * logits
    assert terms(torch, "transient") == {"backward pass": 2 * logits}
    in_place = one_stage(fused_loss=True, loss_in_place=True)
    assert terms(in_place)["logits"] == 2 * logits
    capped = one_stage(model=replace(LLAMA_70B, caps_logits=True))
    assert terms(capped)["capped logits"] == 2 * logits
    # The gradient of the output layer's input, whole and of the rank.
    assert terms(in_place, "transient") == {"backward pass": (64 + 32) * MIB}


def test_stages_that_read_data_hold_a_mask_of_all_pairs_in_the_forward_pass() -> None:
    pairs = 4096 * 4096
    more = terms(one_stage(loads_mask=True), "transient")["end of the forward pass"]
    assert more - terms(one_stage(), "transient")["end of the forward pass"] == pairs
    # Ranks of a context parallel group cut their own rows; stages inside the pipeline have none.
    shared = training(layers=8, pp=4, cp=2, dp=2, implementation="transformer_engine", fused_loss=True)
    of_stages = zip(memory(shared), memory(replace(shared, loads_mask=True)), strict=True)
    differences = [after.allocated - before.allocated for before, after in of_stages]
    assert differences[1:] == [0, 0, pairs / 2]


def in_flight(job: Training, stage: Stage) -> int:
    """Return how many micro-batches, each in one model chunk, a stage holds at most for their backward."""
    works = order(job.layout, stage.index, job.micro_batches)
    return max(accumulate(1 if work.is_forward else -1 for work in works))


def test_all_micro_batches_in_flight_keep_their_layers() -> None:
    for chunks in (1, 2):
        job = training(layers=16, pp=4, dp=2, chunks=chunks, micro_batches=16)
        layer = terms(memory(training(layers=1))[0])["dense layers"]
        for of, stage in zip(memory(job), job.layout.stages, strict=True):
            assert terms(of)["dense layers"] == in_flight(job, stage) * 4 // chunks * layer


def test_recomputed_layers_keep_their_inputs() -> None:
    none, stream = one_stage(), 2048 * 8192 * 2
    layer = terms(none)["dense layers"] / 2
    full = one_stage(recompute=Recompute(full=Setting("full", "uniform", 1)))
    assert "dense layers" not in terms(full)
    assert terms(full)["inputs of recomputed layers"] == 2 * stream
    both = one_stage(recompute=Recompute(full=Setting("full", "uniform", 2)))
    assert terms(both)["inputs of recomputed layers"] == stream
    # In the backward pass, when the logits are gone, both layers are there again.
    small = replace(LLAMA_70B, vocabulary=1024)
    both = one_stage(model=small, recompute=Recompute(full=Setting("full", "uniform", 2)))
    passing = terms(both, "transient")["backward pass"] + terms(both)["logits"] + terms(both)["last norm"]
    assert passing == 2 * layer + stream + 2 * 4096 * 14336 * 2
    block = one_stage(recompute=Recompute(full=Setting("full", "block", 1)))
    assert terms(block)["dense layers"] == layer
    assert terms(block)["inputs of recomputed layers"] == stream


def test_recomputation_by_stage_and_micro_batch() -> None:
    """The last two micro-batches of the first stage keep everything: all others keep inputs only."""
    full = ((1,) * 6 + (0,) * 2, (1,) * 8)
    schedule = RecomputeSchedule(
        {"recompute_granularity_per_stage_micro_batch": full}, Setting("full", "block", 2)
    )
    job = training(layers=4, pp=2, recompute=Recompute(schedule=schedule))
    first, last = memory(job)
    layer = terms(memory(training(layers=1))[0])["dense layers"]
    assert terms(first)["dense layers"] == 4 * layer
    assert "inputs of recomputed layers" not in terms(first)
    assert "dense layers" not in terms(last)


def test_experts_hold_tokens_before_and_after_the_exchange() -> None:
    model = shape(4, experts=8, vocabulary=1024)
    _, last = memory(training(model=model, pp=2, dp=2, loss_in_place=True))
    tokens = 4096 * 4096 * 2
    in_loss = terms(last)["logits"] + terms(last)["last norm"]
    assert terms(last, "transient") == {"end of the forward pass": 4 * 2 * tokens + 2 * tokens - in_loss}


def test_prediction_heads_have_a_loss_each() -> None:
    plain = terms(one_stage())
    heads = terms(one_stage(model=replace(LLAMA_70B, prediction_heads=2)))
    assert heads["logits"] == 3 * plain["logits"]
    stream = 2048 * 8192 * 2
    assert heads["prediction heads"] == 2 * (plain["dense layers"] / 2 + 6 * stream)


def test_context_parallel_ranks_exchange_heads_or_keys() -> None:
    model = replace(LLAMA_70B, vocabulary=1024)
    keys = terms(memory(training(model=model, cp=4, sequence=32768, exchange="p2p"))[0])
    heads = terms(memory(training(model=model, cp=4, sequence=32768, exchange="a2a"))[0])
    # The output of attention, before and after it is exchanged.
    assert heads["dense layers"] - keys["dense layers"] == 2 * 8192 * 8192 * 2


def test_local_layers_with_kernels_keep_what_transformer_engine_keeps() -> None:
    te, local = one_stage(stores_scores=True), one_stage(implementation="local")
    assert terms(local)["dense layers"] == terms(te)["dense layers"]
    # The engine computes scores in a buffer of its own, which stays.
    assert terms(local)["buffer of attention's scores"] == 32 * 4096**2 * 2


def test_our_layers_compute_the_product_again() -> None:
    small, product = replace(LLAMA_70B, vocabulary=1024), 4096 * 14336 * 2
    for implementation, products in (("transformer_engine", 2), ("torch", 3)):
        stage = one_stage(model=small, implementation=implementation)
        of_loss = terms(stage)["logits"] + terms(stage)["last norm"]
        assert terms(stage)["backward pass"] == 2048 * 8192 * 2 + products * product - of_loss


def test_workspaces_of_multiplications() -> None:
    def workspaces(**changes: Any) -> float:
        return terms(memory(training(model=LLAMA_70B, **changes))[0])["workspaces of multiplications"]

    assert workspaces() == 3 * 32 * MIB
    assert workspaces(chip="T4") == 3 * 8 * MIB
    assert workspaces(chip="T4", deterministic=True) == (2 * 32 + 8) * MIB
    assert workspaces(implementation="torch") == 2 * 32 * MIB
    experts = memory(training(model=shape(2, experts=8)))[0]
    assert terms(experts)["workspaces of multiplications"] == 7 * 32 * MIB


def test_communicators_need_more_on_faster_links() -> None:
    alone = memory(training(model=LLAMA_70B))[0]
    assert "communicators" not in terms(alone)
    slow, fast = (terms(one_stage(chip=chip), "outside")["communicators"] for chip in ("T4", "H100"))
    assert slow == 2 * 2 * 20 * MIB
    assert fast > 5 * slow


def test_layers_that_the_table_does_not_have() -> None:
    with pytest.raises(UserError, match="context_parallel_size"):
        memory(training(implementation="local", fused_softmax=False, cp=2))


def test_meshes_have_degrees_of_their_own() -> None:
    job = training(layers=8, pp=2)
    meshes = (Mesh(tp=2, dp=1, layers=((2,),), sp=True), Mesh(dp=2, layers=((6,),)))
    blocks = (replace(job.blocks[0], micro_batch=2, sequence_parallel=True), job.blocks[0])
    first, last = memory(replace(job, layout=HeteroLayout(meshes), blocks=blocks, batch=16))
    layer = terms(memory(training(layers=1))[0])["dense layers"]
    # Three micro-batches in flight (one more because of the boundary), each of two samples over two ranks.
    assert terms(first)["dense layers"] == pytest.approx(3 * 2 * layer)
    assert terms(last)["dense layers"] == 6 * layer


def random_job(draw: random.Random) -> dict[str, Any]:
    experts = draw.choice([0, 0, 8])
    model = shape(
        draw.choice([8, 16]),
        experts=experts,
        dropout=draw.random() < 0.5,
        gated=draw.random() < 0.5,
        shared_ffn=draw.choice([0, 1024]) if experts else 0,
        prediction_heads=draw.choice([0, 0, 1]),
        tied=draw.random() < 0.5,
    )
    return {
        "model": model,
        "tp": draw.choice([1, 2, 4]),
        "cp": draw.choice([1, 2]),
        "dp": draw.choice([1, 2, 8]),
        "pp": draw.choice([1, 2, 4]),
        "chunks": draw.choice([1, 2]),
        "ep": draw.choice([1, 2]) if experts else 1,
        "micro_batches": draw.choice([4, 8, 16]),
        "stores_scores": draw.random() < 0.3,
        "loss_in_place": draw.random() < 0.5,
        "recompute": draw.choice(
            [Recompute(), Recompute(("mlp",)), Recompute(full=Setting("full", "block", 1))]
        ),
    }


def worst(**job: Any) -> float:
    if job.get("pp", 1) == 1:
        job["chunks"] = 1
    return max(of.allocated for of in memory(training(**job)))


@pytest.mark.parametrize("seed", range(20))
def test_properties_of_random_jobs(seed: int) -> None:
    job = random_job(random.Random(seed))
    job["dp"] *= job["ep"]  # all experts have as many ranks
    base = worst(**job)
    for of in memory(training(**{**job, "chunks": job["chunks"] if job["pp"] > 1 else 1})):
        assert all(term.nbytes > 0 for term in of.terms)
        assert of.allocated < of.reserved < of.device
    assert worst(**job, micro_batch=2) > base
    assert worst(**job, sequence=8192) > base
    assert worst(**{**job, "dp": 2 * job["dp"]}) < base
    assert worst(**{**job, "recompute": Recompute(full=Setting("full", "uniform", 1))}) <= base * 1.02
    assert worst(**{**job, "micro_batches": 32}) >= base


@cache
def published() -> tuple[Row, ...]:
    return tuple(row for row in read_rows(ROOT / "benchmarks" / "measured.jsonl") if not row.reason)


def errors(source: str, quality: str) -> Iterator[float]:
    """Yield the relative errors on the published measurements of a source."""
    for row in published():
        if row.source == source and row.quality == quality and "allocated" in row.measured:
            try:
                stages = [memory(job) for job in row.copies]
            except UserError:  # layers that the table does not have
                continue
            whole = [of for one in stages for of in (one[-1:] if row.is_last_stage else one)]
            yield max(of.allocated for of in whole) / row.measured["allocated"] - 1


def test_errors_on_published_measurements() -> None:
    """The terms were found by looking at these rows; no constant was fitted."""
    found = [abs(error) for error in errors("simumax", "A")]
    assert len(found) == 22
    assert mean(found) <= 0.002
    assert max(found) <= 0.005
    found = [abs(error) for error in errors("mlm", "A")]
    assert len(found) > 70
    assert mean(found) <= 0.02
