"""Layouts that train a model with pictures as one process does, from a few ranks that share the fork server.

`python -m benchmarks.vision_layouts` compares all others.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.vision_layouts import LAYOUTS
from flagscale.vision.arguments import vision_of
from flagscale.vision.tiling import Vision
from flagscale.vision.tower import TOWERS
from flagscale_testing.ranks.forked import Curve, Run, run_all
from flagscale_testing.ranks.layouts import CP2, PP2, Difference, Layout, compare
from flagscale_testing.ranks.pictures import drawn
from flagscale_testing.ranks.training import read_metrics
from megatron.flagscale.vision.arguments import add_arguments
from megatron.flagscale.vision.flops import tile_flops

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),  # the first test of each fixture waits for all its trainings
]
STEPS = 4
SAVED_AT = 2
NAMES = (
    "onevision: TP2 SP",
    "onevision: PP2 interleaved",
    "onevision, packed: CP2",
    "onevision, projector only: PP2, nothing to train on the last stage",
)
CHOSEN = {layout.name: layout for layout in LAYOUTS if layout.name in NAMES}
BLIND = Layout("onevision: blind", "onevision", 1, "")


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Difference]:
    folder: Path = tmp_path_factory.mktemp("layouts")
    return compare([*CHOSEN.values()], folder, STEPS)


@pytest.mark.parametrize("name", NAMES)
def test_a_layout_computes_the_same_as_one_process(name: str, differences: dict[str, Difference]) -> None:
    found = differences[name]
    assert found.is_small(CHOSEN[name].model), found


EVALUATED = ("--eval-iters", "1", "--eval-interval", str(SAVED_AT))
SAVED = Layout("saved as PP2", "onevision", 2, f"{PP2} --use-distributed-optimizer")
CONTINUED = Layout("continued as CP2", "onevision", 2, f"{CP2} --use-distributed-optimizer")
FROZEN = Layout("the language model is frozen", "onevision, frozen language model", 1, "")
THAWED = Layout("it is trained again", "onevision", 1, "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("checkpoints")
    return made


@pytest.fixture(scope="module")
def curves(folder: Path) -> dict[str, Curve]:
    of_other = ("--pretrained-checkpoint", f"{folder}/saved")
    runs = [
        _run(SAVED, "--save", f"{folder}/saved", "--save-interval", str(SAVED_AT), *EVALUATED),
        _run(CONTINUED, "--load", f"{folder}/saved", "--ckpt-step", str(SAVED_AT), *EVALUATED),
        _run(FROZEN, *of_other, "--save", f"{folder}/frozen", "--save-interval", str(STEPS)),
        _run(THAWED, "--load", f"{folder}/frozen"),
        replace(BLIND.run(STEPS), mutation="flagscale_testing.ranks.pictures:blind"),
    ]
    return run_all(runs, folder / "runs")


def _run(layout: Layout, *more: str) -> Run:
    run = layout.run(STEPS)
    return replace(run, argv=(*run.argv, *more))


def test_another_layout_continues_with_the_next_samples(curves: dict[str, Curve]) -> None:
    whole, rest = curves[SAVED.name], curves[CONTINUED.name]
    assert not whole.error
    assert not rest.error
    assert rest.losses == pytest.approx(whole.losses[SAVED_AT:], abs=2e-5)
    assert rest.grad_norms == pytest.approx(whole.grad_norms[SAVED_AT:], rel=1e-4)


def test_only_tokens_of_samples_are_counted_also_by_a_run_that_continues(
    folder: Path, curves: dict[str, Curve]
) -> None:
    assert not curves[CONTINUED.name].error
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    vision = vision_of(vars(parser.parse_known_args(SAVED.run(STEPS).argv)[0]))
    lengths = [len(drawn(number, vision).tokens) for number in range(8 * STEPS)]
    for layout, steps in ((SAVED, range(1, STEPS + 1)), (CONTINUED, range(SAVED_AT + 1, STEPS + 1))):
        logged = [line for line in _metrics(folder, layout) if "lm_loss" in line]
        assert {line["iteration"]: line["consumed_tokens"] for line in logged} == {
            step: sum(lengths[: 8 * step]) for step in steps
        }
        for line in logged:
            tokens = sum(lengths[8 * (line["iteration"] - 1) : 8 * line["iteration"]])
            assert line["tokens_per_s"] == pytest.approx(tokens * 1000 / line["iteration_ms"])


def test_each_layout_counts_the_same_operations(folder: Path, curves: dict[str, Curve]) -> None:
    assert not curves[CONTINUED.name].error
    per_step = [
        [
            line["tflops_per_gpu"] * line["iteration_ms"] * layout.ranks
            for line in _metrics(folder, layout)
            if line["iteration"] > SAVED_AT and "lm_loss" in line
        ]
        for layout in (SAVED, CONTINUED)
    ]
    assert per_step[0] == pytest.approx(per_step[1])


def test_a_tile_needs_six_operations_per_weight_and_feature_and_those_of_attention() -> None:
    vision = Vision(TOWERS["siglip"])
    found = tile_flops(vision, 896, is_trained=True)
    weights = 26 * (4 * 1152**2 + 2 * 1152 * 4304) + 3 * 14**2 * 1152 + 1152 * 896 + 896**2
    assert found == pytest.approx(6 * 729 * weights + 26 * 12 * 729**2 * 1152)
    forward = tile_flops(vision, 896, is_trained=False)
    assert found / 3 < forward < found / 2.9


def test_each_evaluation_reads_the_same_samples_in_every_layout(
    folder: Path, curves: dict[str, Curve]
) -> None:
    assert not curves[CONTINUED.name].error
    losses = [
        [line["validation_loss"] for line in _metrics(folder, layout) if "validation_loss" in line]
        for layout in (SAVED, CONTINUED)
    ]
    before, after, at_the_end = losses[0]
    assert after == at_the_end != before
    assert losses[1] == pytest.approx([after, at_the_end], abs=2e-5)


def test_a_training_starts_from_the_weights_of_another(curves: dict[str, Curve]) -> None:
    found = curves[FROZEN.name]
    assert not found.error
    assert found.losses[0] < curves[SAVED.name].losses[0] - 0.2


def test_a_part_that_was_frozen_is_not_trained_without_its_states(curves: dict[str, Curve]) -> None:
    assert "--freeze-LM: `freeze_LM` is false, but the checkpoint" in curves[THAWED.name].error
    assert "`no_load_optim: true` to continue without the optimizer's state" in curves[THAWED.name].error


def test_the_loss_depends_on_the_pictures(curves: dict[str, Curve]) -> None:
    found = curves[BLIND.name]
    assert not found.error
    assert abs(found.losses[-1] - curves[SAVED.name].losses[-1]) > 1e-3


def _metrics(folder: Path, layout: Layout) -> list[dict[str, float]]:
    return read_metrics(folder / "runs" / layout.name / "metrics.jsonl")
