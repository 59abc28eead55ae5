"""Meshes together skip steps, repeat dropout, have micro-batches in flight and save asynchronously."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.hetero_layouts import DP2, ONE, TP2, Hetero
from benchmarks.layouts import FULL, ZERO
from flagscale_testing.ranks.forked import run_all
from flagscale_testing.ranks.layouts import Layout

pytestmark = pytest.mark.timeout(900)  # the first test of a fixture waits for all its trainings
STEPS = 6
BROKEN = 3


def break_a_gradient() -> None:
    """Make one gradient of the last rank overflow in one step."""
    import torch.distributed as dist
    from megatron.core.optimizer.optimizer import MixedPrecisionOptimizer

    original = MixedPrecisionOptimizer._unscale_main_grads_and_check_for_nan
    calls = []

    def check(self: Any) -> bool:
        calls.append(self)
        if len(calls) == BROKEN and dist.get_rank() == dist.get_world_size() - 1:
            self._collect_main_grad_data_for_unscaling()[0].fill_(float("inf"))
        return bool(original(self))

    MixedPrecisionOptimizer._unscale_main_grads_and_check_for_nan = check


@pytest.mark.parametrize(
    "options", [pytest.param("", marks=pytest.mark.slow), ZERO], ids=["whole", "sharded"]
)
def test_an_overflow_in_one_mesh_skips_the_step_in_all_meshes(options: str, tmp_path: Path) -> None:
    layouts = (Layout("one", "llama fp16", 1, ""), Hetero("meshes", "llama fp16", 4, options, TP2 + DP2))
    runs = [replace(layout.run(STEPS), mutation=f"{__name__}:break_a_gradient") for layout in layouts]
    one, meshes = run_all(runs, tmp_path).values()
    assert not one.error
    assert not meshes.error
    assert len(one.losses) == STEPS - 1, "the skipped step reports no loss"
    assert meshes.losses == pytest.approx(one.losses, abs=5e-3)


@pytest.mark.slow
def test_recomputed_layers_use_the_same_dropout(tmp_path: Path) -> None:
    kept = Hetero("kept", "dropout", 4, "", TP2 + DP2)
    recomputed = replace(kept, name="recomputed", options=f"{FULL} uniform")
    without = Layout("without dropout", "llama", 1, "")
    curves = run_all([layout.run(STEPS) for layout in (kept, recomputed, without)], tmp_path)
    assert not [curve.error for curve in curves.values() if curve.error]
    assert curves["recomputed"].losses == pytest.approx(curves["kept"].losses, abs=2e-5)
    assert curves["without dropout"].losses != pytest.approx(curves["kept"].losses, abs=1e-3)


def note_the_warm_up() -> None:
    """Make each rank record how many forward passes it runs before its first backward pass."""
    import torch.distributed as dist
    from megatron.core.pipeline_parallel import schedules
    from megatron.training import get_args

    forward, backward = schedules.forward_step, schedules.backward_step
    ahead: list[None] = []

    def forward_step(*positional: Any, **named: Any) -> Any:
        ahead.append(None)
        return forward(*positional, **named)

    def backward_step(*positional: Any, **named: Any) -> Any:
        note = Path(get_args().metrics_file).with_name(f"rank_{dist.get_rank()}")
        if not note.exists():
            note.write_text(str(len(ahead)))
        return backward(*positional, **named)

    schedules.forward_step, schedules.backward_step = forward_step, backward_step


def test_more_micro_batches_are_in_flight_between_meshes(tmp_path: Path) -> None:
    layout = Hetero("meshes", "llama", 3, "--micro-batch-size 1", ONE + ONE + ONE, (1, 2, 1))
    run = replace(layout.run(1), mutation=f"{__name__}:note_the_warm_up")
    assert not run_all([run], tmp_path)["meshes"].error
    noted = [int((tmp_path / "meshes" / f"rank_{rank}").read_text()) for rank in range(3)]
    # One per later stage, an extra one per boundary, and the one it continues with.
    assert noted == [2 + 2 + 1, 1 + 1 + 1, 1]


@pytest.mark.slow
def test_a_checkpoint_of_meshes_is_written_while_training_continues(tmp_path: Path) -> None:
    saved, events = tmp_path / "saved", tmp_path / "tensorboard"
    meshes = Hetero("meshes", "llama", 3, ZERO, TP2 + ONE, (3, 1)).run(STEPS)
    saving = ("--save", str(saved), "--save-interval", "3", "--async-save", "--tensorboard-dir", str(events))
    one = Layout("one", "llama", 1, ZERO).run(STEPS)
    resuming = ("--load", str(saved), "--ckpt-step", "3")
    asked = [(meshes, (*saving, "--distributed-timeout-seconds-after-init", "300")), (one, resuming)]
    curves = run_all([replace(run, argv=(*run.argv, *more)) for run, more in asked], tmp_path / "runs")
    assert not [curve.error for curve in curves.values() if curve.error]
    # Only the last rank of the job writes it, not the last rank of each mesh.
    assert len(list(events.glob("events.*"))) == 1
    assert curves["one"].losses == pytest.approx(curves["meshes"].losses[3:], abs=2e-5)
