"""The time of a step: what must make it longer or shorter, its parts, its units, and its errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from flagscale.checks.hetero.layout import HeteroLayout, Mesh
from flagscale.checks.recompute import GRANULARITY, RecomputeSchedule, Setting
from flagscale.errors import UserError
from flagscale.planner.calibration import Calibration
from flagscale.planner.chips import Chip, Link, chip_of, find_chip
from flagscale.planner.sharding import Sharding
from flagscale.planner.time.collectives import Group, network
from flagscale.planner.time.constants import constants, constants_table
from flagscale.planner.time.flops import model_flops
from flagscale.planner.time.layer_time import layer_time
from flagscale.planner.time.speeds import speeds
from flagscale.planner.time.step_time import StepTime, step_time
from flagscale.planner.training import Block, Numerics, Recompute, Training
from tests.unit.trainings import shape, training

DEFAULT = constants()


def seconds(**changes: Any) -> float:
    return step_time(training(**changes)).seconds


def parts(one: StepTime) -> tuple[float, ...]:
    return one.compute_s, one.communication_s, one.bubble_s, one.optimizer_s, one.host_s


JOBS: dict[str, dict[str, Any]] = {
    "one device": {},
    "tensor": {"tp": 8},
    "no sequence parallelism": {"tp": 8, "sequence_parallel": False},
    "pipeline": {"pp": 4, "dp": 2},
    "interleaved": {"pp": 4, "chunks": 2, "tp": 2},
    "context": {"cp": 4, "tp": 2, "sequence": 32768},
    "experts": {"model": shape(8, experts=16), "dp": 8, "ep": 8},
    "heads": {"model": shape(8, prediction_heads=1), "pp": 2},
    "fp8": {"numerics": Numerics(compute="fp8", distributed=True), "dp": 16, "tp": 4},
    "local": {"implementation": "local", "tp": 2},
}


@pytest.mark.parametrize("job", JOBS)
def test_the_parts_add_up_and_none_is_negative(job: str) -> None:
    found = step_time(training(**JOBS[job]))
    assert sum(parts(found)) == pytest.approx(found.seconds, rel=1e-9)
    assert min(parts(found)) >= 0
    assert found.seconds == step_time(training(**JOBS[job])).seconds
    assert found.timeline.seconds < found.seconds


def test_norms_after_a_layers_parts_take_the_time_of_norms_before_them() -> None:
    def layer(tp: int = 1, **changes: Any) -> Any:
        of, sharding = shape(1, **changes), Sharding(2048, 1, tp=tp, implementation="torch")
        chip = find_chip("H100")
        return layer_time(of, False, sharding, speeds(chip, "bfloat16", DEFAULT), network(chip, 8, DEFAULT))

    before, after, around = (layer(norm_position=position) for position in ("pre", "post", "both"))
    assert after.forward.compute == pytest.approx(before.forward.compute)
    assert around.forward.kernels == before.forward.kernels + 2
    assert after.recomputed(["layernorm"]).compute == 0
    assert around.recomputed(["layernorm"]).compute == before.recomputed(["layernorm"]).compute > 0
    alone, heads = layer(qk_norm_across_heads=True), {"tp": 2, "qk_norm_across_heads": True}
    assert alone.forward.compute > before.forward.compute
    assert alone.forward.communication == 0
    assert layer(**heads).forward.communication > layer(tp=2).forward.communication


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("chip", ["A100-80", "H100", "GB200", "Ascend910B"])
def test_no_job_is_faster_than_the_chip(job: str, chip: str) -> None:
    of = training(**{**JOBS[job], "chip": chip})
    reached = model_flops(of) / of.layout.world_size / step_time(of).seconds
    peak = max(of.blocks[0].chip.flop_s.values())
    assert 0.02 * peak < reached < 0.9 * peak


@pytest.mark.parametrize("job", JOBS)
def test_more_work_takes_longer(job: str) -> None:
    of = training(**JOBS[job])
    base = step_time(of).seconds
    assert step_time(replace(of, batch=2 * of.batch)).seconds > base
    assert step_time(replace(of, sequence=2 * of.sequence)).seconds > base
    again = replace(of, recompute=Recompute(full=Setting("full", "uniform", 1)))
    assert base < step_time(again).seconds < 1.5 * base
    some = replace(of, recompute=Recompute(modules=("core_attn", "layernorm")))
    assert base < step_time(some).seconds < step_time(again).seconds
    slower = replace(of.blocks[0].chip, flop_s={"bfloat16": 1e14})
    assert step_time(replace(of, blocks=(replace(of.blocks[0], chip=slower),))).seconds > base


def test_more_layers_take_longer() -> None:
    assert seconds(layers=16) < seconds(layers=32) < seconds(layers=64)


@pytest.mark.parametrize(
    ("job", "field"),
    [
        ({"dp": 8}, "overlap_gradients"),
        ({"dp": 8}, "overlap_parameters"),
        ({"dp": 64, "pp": 2, "micro_batches": 2}, "overlap_gradients"),
        ({"tp": 8}, "overlap_tensor"),
    ],
)
def test_overlap_hides_communication_but_not_all_of_it(job: dict[str, Any], field: str) -> None:
    plain, hidden = (step_time(training(**job, **{field: flag})) for flag in (False, True))
    assert 0 < hidden.communication_s < plain.communication_s
    assert hidden.seconds < plain.seconds


def test_cuda_graphs_save_the_time_of_the_host() -> None:
    slow = Calibration(host=10)  # so slow a host that it decides

    def with_graphs(*modules: str, **changes: Any) -> float:
        return step_time(training(captured=modules, **changes), calibration=slow).seconds

    assert with_graphs() > with_graphs("attn") > with_graphs("attn", "mlp") > with_graphs("full_iteration")
    experts: dict[str, Any] = {"model": shape(8, experts=16), "dp": 8, "ep": 8}
    times = [with_graphs(*modules, **experts) for modules in ((), ("moe_router", "moe_preprocess"), ("moe",))]
    assert times[0] > times[1] > times[2]
    whole = training(captured=("full_iteration",))
    assert step_time(whole, calibration=slow).seconds == step_time(whole).seconds


def test_rows_that_are_not_aligned_slow_the_output_layer() -> None:
    times = [seconds(padded_vocabulary=tokens) for tokens in (50304, 50257)]
    assert times[1] > times[0]
    assert seconds(padded_vocabulary=50257 * 8, tp=8) > seconds(padded_vocabulary=50304 * 8, tp=8)


def test_overlapped_messages_shorten_an_interleaved_pipeline() -> None:
    job = {"pp": 8, "chunks": 4, "micro_batches": 32}
    assert seconds(**job, overlap_pipeline=True) < seconds(**job, overlap_pipeline=False)


def test_interleaving_makes_the_bubble_smaller() -> None:
    plain, interleaved = (step_time(training(pp=8, chunks=chunks)) for chunks in (1, 4))
    assert interleaved.bubble_s < 0.6 * plain.bubble_s


def test_the_slowest_stage_limits() -> None:
    uneven = HeteroLayout((Mesh(pp=4, layers=((6,), (14,), (6,), (6,))),))
    found = step_time(replace(training(pp=4), layout=uneven))
    assert found.stage == 1
    assert found.seconds > seconds(pp=4)


def test_recompute_may_differ_between_stages_and_micro_batches() -> None:
    layers = ((0,) * 8, (1,) * 4 + (0,) * 4)
    schedule = RecomputeSchedule({GRANULARITY: layers}, Setting("full", "uniform", 1))
    none, some, every = (
        step_time(training(pp=2, recompute=recompute))
        for recompute in (
            Recompute(),
            Recompute(full=schedule.default, schedule=schedule),
            Recompute(full=schedule.default),
        )
    )
    assert none.seconds < some.seconds < every.seconds
    backward = [span for span in some.timeline.spans[1] if not span.work.is_forward]
    first, last = (span.end - span.start for span in (backward[0], backward[-1]))
    assert first > 1.2 * last


def test_meshes_of_unequal_chips() -> None:
    fast, slow = find_chip("H100"), find_chip("A100-80")
    meshes = (Mesh(tp=2, dp=2, pp=1, layers=((24,),)), Mesh(tp=4, dp=1, pp=1, layers=((8,),)))
    of = replace(
        training(),
        layout=HeteroLayout(meshes),
        blocks=(Block(fast, 1, sequence_parallel=True), Block(slow, 2, sequence_parallel=True)),
        batch=16,
    )
    found = step_time(of)
    assert sum(parts(found)) == pytest.approx(found.seconds)
    copied = replace(of, layout=replace(of.layout, cpu_communication=True))
    assert step_time(copied).seconds > found.seconds
    assert (
        step_time(replace(of, blocks=(of.blocks[0], replace(of.blocks[1], chip=fast)))).seconds
        < found.seconds
    )


def test_instances_of_the_optimizer_hold_larger_parts_and_add_their_gradients() -> None:
    numerics = Numerics(distributed=True)
    one, two = (step_time(training(dp=8, numerics=replace(numerics, instances=number))) for number in (1, 2))
    assert two.optimizer_s > 1.5 * one.optimizer_s
    assert two.communication_s > one.communication_s
    assert step_time(training(dp=8, numerics=Numerics(instances=2))) == step_time(
        training(dp=8, numerics=Numerics())
    )


def test_tied_embeddings_are_added_between_the_ends() -> None:
    tied = shape(32, tied=True)
    assert seconds(model=tied, pp=2) > seconds(pp=2)


def test_a_calibration_scales_and_adds() -> None:
    of = training(tp=2)
    plain = step_time(of)
    found = step_time(of, calibration=Calibration(scale=1.2, offset_s=0.05))
    assert found.seconds == pytest.approx(1.2 * plain.seconds + 0.05)
    assert sum(parts(found)) == pytest.approx(found.seconds)


@pytest.mark.parametrize("exchange", ["p2p", "a2a", "allgather"])
def test_context_parallelism_divides_long_sequences(exchange: str) -> None:
    whole = seconds(sequence=65536)
    divided = seconds(sequence=65536, cp=8, exchange=exchange)
    assert whole / 8 < divided < whole / 4


def test_model_flops_are_those_of_the_published_formula() -> None:
    # 6 per weight and token, and causal attention: 6 layers sequence heads head_dim per token.
    layer = 4096 * 128 * (2 * 32 + 2 * 8) + 3 * 4096 * 14336
    weights = 32 * layer + 4096 * 32000
    of = training(tp=2, dp=4, pp=2)
    tokens = of.batch * of.sequence
    assert model_flops(of) == tokens * (6 * weights + 6 * 32 * 4096 * 32 * 128)
    # Only the experts that a token takes count, and the router.
    experts = model_flops(replace(of, model=shape(32, experts=8)))
    active = 32 * (2 * 3 * 4096 * 4096 + 8 * 4096 - 3 * 4096 * 14336)
    assert experts - model_flops(of) == pytest.approx(6 * tokens * active)


def test_one_layer_needs_no_training() -> None:
    chip = find_chip("H100")
    of = speeds(chip, "bfloat16", DEFAULT), network(chip, 8, DEFAULT)
    one, half = (layer_time(shape(), False, Sharding(4096, 1, tp=tp), *of) for tp in (1, 2))
    flop = 2 * 4096 * (4096 * 128 * 80 + 3 * 4096 * 14336)
    assert flop / 989e12 < one.forward.compute < 3 * flop / 989e12
    assert 1.7 * one.forward.compute < one.backward.compute < 2.5 * one.forward.compute
    assert 0.5 < half.forward.compute / one.forward.compute < 0.7
    assert one.forward.communication == 0 < half.forward.communication
    attention = one.recomputed(["core_attn"]).compute
    assert 0 < attention < one.recomputed(["core_attn", "mlp"]).compute < one.forward.compute
    assert one.recomputed(["moe_act"]).compute == 0


def test_groups_are_placed_by_the_order_of_ranks() -> None:
    of = network(find_chip("H100"), 8, DEFAULT)
    assert of.group(8, 1) == Group(8, 8)
    assert of.group(4, 4) == Group(4, 2)
    assert of.group(16, 8) == Group(16, 1)
    # A link that joins hosts: 72 devices, 4 for each of them.
    assert network(find_chip("GB200"), 4, DEFAULT).group(64, 1) == Group(64, 64)
    assert network(find_chip("H100"), 4, DEFAULT).group(8, 1) == Group(8, 4)


def test_collectives_cost_bytes_over_bandwidth() -> None:
    chip = Chip("x", {}, 1, 1, Link(1e11, 1e-6), Link(1e10, 1e-5), per_node=8)
    of = network(chip, 8, replace(DEFAULT, link_share=1.0, network_share=1.0, alltoall_share=0.5))
    inside, across, alone = of.group(8, 1), of.group(4, 8), of.group(1, 1)
    assert of.gather(8e9, inside) == pytest.approx(7e9 / 1e11 + 3e-6)
    assert of.reduce(8e9, inside) == pytest.approx(14e9 / 1e11 + 3e-6)
    assert of.gather(8e9, across) == pytest.approx(6e9 / 1e10 + 2e-5)
    # Two nodes: all eight devices of each send at the same time, as fast as the link inside.
    assert of.gather(16e9, of.group(16, 1)) == pytest.approx(15e9 / 8e10 + 4e-5)
    assert of.exchange(8e9, inside) == pytest.approx(7e9 / 1e11 / 0.5 + 3e-6)
    assert of.send(1e9, True) == pytest.approx(0.01 + 1e-6)
    assert of.gather(1e9, alone) == of.reduce(1e9, alone) == of.exchange(1e9, alone) == 0


def test_what_was_measured_comes_first() -> None:
    entry = {
        "bf16_tflops_dense": 100,
        "hbm_gb_s": 1000,
        "measured": {
            "gemm": {"bfloat16": [[64, 64, 64, 1e-3]]},
            "collectives": {"all_reduce": {"4": [[1, 0.5], [1e6, 1.0]]}},
        },
    }
    chip = chip_of("own", entry)
    assert speeds(chip, "bfloat16", DEFAULT).multiply(64, 64, 64) == pytest.approx(1e-3)
    of = network(chip, 4, DEFAULT)
    assert of.reduce(1e6, Group(4, 4)) == pytest.approx(1.0)
    shared = chip_of(
        "own", {"bf16_tflops_dense": 100, "hbm_gb_s": 1000, "measured": {"gemm_share_of_peak": 0.5}}
    )
    assert speeds(shared, "bfloat16", DEFAULT).flop_s == pytest.approx(5e13 * DEFAULT.sustained_share)


def test_unknown_figures_of_a_chip_are_named() -> None:
    with pytest.raises(UserError, match=r"peak of chip `empty` in bfloat16(?s:.*)memory of chip `empty`"):
        step_time(_on(chip_of("empty", {"memory_gb": 32})))
    lonely = chip_of("lonely", {"bf16_tflops_dense": 100, "hbm_gb_s": 1000})
    assert step_time(_on(lonely)).seconds > 0
    with pytest.raises(UserError, match=r"links of chip `lonely` between nodes(?s:.*)gbit_s_per_card"):
        step_time(_on(lonely, dp=2))
    with pytest.raises(UserError, match=r"links of chip `lonely` inside a node(?s:.*)intra_node.gb_s"):
        step_time(_on(replace(lonely, per_node=8), tp=2))


def _on(chip: Chip, **changes: Any) -> Training:
    of = training(**changes)
    return replace(of, blocks=(replace(of.blocks[0], chip=chip),))


def test_a_precision_that_a_chip_lacks_runs_in_the_next_one() -> None:
    wide, narrow = (
        seconds(chip="A100-80", numerics=Numerics(compute=compute)) for compute in ("bfloat16", "fp8")
    )
    assert wide == narrow
    assert seconds(numerics=Numerics(compute="fp8")) < seconds(numerics=Numerics(compute="bfloat16"))


def test_every_set_of_constants_is_in_its_range() -> None:
    table = constants_table()
    for values in (table["all"], *table["without"].values()):
        assert values.keys() == table["meanings"].keys() == DEFAULT.__dict__.keys()
        for name, value in values.items():
            meaning = table["meanings"][name]
            assert meaning["low"] <= value <= meaning["high"], name
            assert meaning["low"] <= meaning["start"] <= meaning["high"], name
    assert constants("a source that had no part") == DEFAULT
