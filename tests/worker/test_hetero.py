"""Unequal meshes compute the same training as one process; `benchmarks.hetero_layouts` has more layouts."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.hetero_layouts import DP2, LAYOUTS, ONE, TP2, Hetero, M
from benchmarks.layouts import ZERO
from flagscale_testing.ranks.forked import Curve, Run, run_all
from flagscale_testing.ranks.layouts import Difference, Layout, compare
from flagscale_testing.ranks.training import read_metrics

# The fixtures run several jobs of up to 8 ranks, which the first test that uses them waits for.
pytestmark = pytest.mark.timeout(900)

STEPS = 6
SAVED_AT = 3
NAMES = (
    "llama: tp2 SP > cp2",
    "llama: tp2 > 1 rank > 1 rank, 8 extra micro-batches",
    "llama: tp2dp1pp1_tp2dp2pp1_tp1dp2pp1 of FlagScale",
    "gpt: tp2 > dp2, tied embeddings, distributed optimizer",
    "moe: ep2 x dp2 > dp2, alltoall dispatch",
    "packed, per token: dp2 > tp2 > 1 rank",
    "gpt: dp2 > tp2 SP, interleaved, tied embeddings",
)
CHOSEN = {layout.name: layout for layout in LAYOUTS if layout.name in NAMES}


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Difference]:
    return compare([*CHOSEN.values()], tmp_path_factory.mktemp("hetero"), STEPS)


@pytest.mark.parametrize("name", NAMES)
def test_meshes_compute_the_same_as_one_process(name: str, differences: dict[str, Difference]) -> None:
    found = differences[name]
    assert found.is_small(CHOSEN[name].model), found


def drop_gradient_scale() -> None:
    from megatron.flagscale.hetero import lane

    original = lane.Lane.__init__

    def init(self: lane.Lane, *positional: Any, **named: Any) -> None:
        original(self, *positional, **{**named, "scale": 1.0})

    lane.Lane.__init__ = init  # type: ignore[method-assign]


@pytest.mark.slow  # in test_layouts.py, too, a training that differs is found
def test_without_the_gradient_scale_the_training_differs(tmp_path: Path) -> None:
    layout = next(layout for layout in LAYOUTS if layout.name == "llama: tp2 > dp2")
    found = compare([layout], tmp_path, STEPS, f"{__name__}:drop_gradient_scale")[layout.name]
    assert not found.error
    assert not found.is_small(layout.model), found


@pytest.mark.slow  # test_validation.py evaluates on meshes, too
def test_evaluation_spans_all_meshes(tmp_path: Path) -> None:
    layouts = (
        Layout("one", "llama", 1, ""),
        Hetero("meshes", "llama", 4, "", TP2 + DP2),
        Hetero("interleaved", "llama", 4, "", TP2 + DP2, ([1, 1], [1, 1])),
    )
    runs = [layout.run(3) for layout in layouts]
    asked = ("--eval-interval", "3", "--eval-iters", "2")
    curves = run_all([replace(run, argv=(*run.argv, *asked)) for run in runs], tmp_path)
    assert not [curve.error for curve in curves.values() if curve.error]
    one, meshes, interleaved = (
        [
            line["validation_loss"]
            for line in read_metrics(tmp_path / name / "metrics.jsonl")
            if "validation_loss" in line
        ]
        for name in curves
    )
    assert one
    assert meshes == pytest.approx(one, abs=2e-5)
    assert interleaved == pytest.approx(one, abs=2e-5)


# Layouts under which a checkpoint is saved, and under which it is continued.
MESHES = Hetero("meshes", "gpt", 4, ZERO, TP2 + DP2, (3, 1))
CHUNKS = replace(MESHES, name="interleaved", layers=([1, 1], [1, 1]))
EP2 = M(ep=2, dp=2)
EXPERTS = Hetero("experts", "moe unbalanced", 3, "", ONE + EP2)
SHARDED = Hetero("sharded experts", "moe unbalanced", 4, ZERO, EP2 + M(cp=2))
SAVED = {
    "meshes": MESHES,
    "interleaved": CHUNKS,
    "one": Layout("one process", "gpt", 1, ZERO),
    "experts": EXPERTS,
    "sharded experts": SHARDED,
}
CONTINUED = (
    ("meshes", replace(MESHES, name="meshes as the same meshes")),
    ("meshes", Hetero("meshes as other meshes", "gpt", 4, ZERO, DP2 + TP2, (2, 2))),
    ("meshes", Layout("meshes as one process", "gpt", 1, ZERO)),
    ("meshes", replace(CHUNKS, name="meshes as interleaved ones")),
    ("interleaved", Layout("interleaved meshes as one process", "gpt", 1, ZERO)),
    ("one", replace(MESHES, name="one process as meshes")),
    # Only one of the two meshes uses expert parallelism.
    ("experts", replace(EXPERTS, name="experts as the same meshes")),
    ("experts", Layout("experts as expert parallel", "moe unbalanced", 2, "--expert-model-parallel-size 2")),
    ("sharded experts", Hetero("sharded experts as other meshes", "moe unbalanced", 3, ZERO, ONE + EP2)),
    ("sharded experts", Layout("sharded experts as one process", "moe unbalanced", 1, ZERO)),
)


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Curve]:
    folder: Path = tmp_path_factory.mktemp("checkpoints")
    runs: list[Run] = []
    for saved in dict.fromkeys(saved for saved, _ in CONTINUED):
        layout = SAVED[saved]
        runs.append(_run(layout, "--save", f"{folder}/{saved}", "--save-interval", str(SAVED_AT)))
    for saved, layout in CONTINUED:
        runs.append(_run(layout, "--load", f"{folder}/{saved}", "--ckpt-step", str(SAVED_AT)))
    return run_all(runs, folder / "runs")


def _run(layout: Layout, *more: str) -> Run:
    run = layout.run(STEPS)
    # With a vocabulary file, the engine compares more arguments with those of the checkpoint.
    return replace(run, argv=(*run.argv, "--vocab-file", os.devnull, *more))


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "layout"), CONTINUED, ids=lambda value: getattr(value, "name", ""))
def test_another_layout_continues_from_a_checkpoint(
    saved: str, layout: Layout, continued: dict[str, Curve]
) -> None:
    whole, rest = continued[SAVED[saved].name], continued[layout.name]
    assert not whole.error
    assert not rest.error
    assert len(rest.losses) == STEPS - SAVED_AT, "one rank writes metrics"
    assert rest.losses == pytest.approx(whole.losses[SAVED_AT:], abs=2e-5)
    assert rest.grad_norms == pytest.approx(whole.grad_norms[SAVED_AT:], rel=1e-4)
