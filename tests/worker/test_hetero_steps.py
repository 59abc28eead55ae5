"""What meshes do together besides the layers: steps that all must skip, dropout, asynchronous saves."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.hetero_layouts import DP2, ONE, TP2, Hetero
from benchmarks.layouts import FULL, ZERO
from flagscale.parallel.meshes import Mesh, Meshes
from tests.worker.harness import MOCK_DATA, train
from tests.worker.layouts import MUTATION, Layout, run_all

STEPS = 6
BROKEN = 3


def break_a_gradient() -> None:
    """In one step, one gradient of the last rank overflows."""
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
def test_an_overflow_in_one_mesh_skips_the_step_of_all(
    options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MUTATION, f"{__name__}:break_a_gradient")
    layouts = (Layout("one", "llama fp16", 1, ""), Hetero("meshes", "llama fp16", 4, options, TP2 + DP2))
    one, meshes = run_all([layout.run(STEPS) for layout in layouts], tmp_path).values()
    assert not one.error
    assert not meshes.error
    assert len(one.losses) == STEPS - 1, "the broken step has no loss to tell"
    assert meshes.losses == pytest.approx(one.losses, abs=5e-3)


@pytest.mark.slow
def test_what_is_recomputed_has_the_same_dropout(tmp_path: Path) -> None:
    kept = Hetero("kept", "dropout", 4, "", TP2 + DP2)
    recomputed = replace(kept, name="recomputed", options=f"{FULL} uniform")
    without = Layout("without dropout", "llama", 1, "")
    curves = run_all([layout.run(STEPS) for layout in (kept, recomputed, without)], tmp_path)
    assert not [curve.error for curve in curves.values() if curve.error]
    assert curves["recomputed"].losses == pytest.approx(curves["kept"].losses, abs=2e-5)
    assert curves["without dropout"].losses != pytest.approx(curves["kept"].losses, abs=1e-3)


NOTES = "NOTES_OF_THE_SCHEDULE"


def note_the_warm_up() -> None:
    """Each rank notes how many micro-batches it computes forward before its first backward."""
    import torch.distributed as dist
    from megatron.core.pipeline_parallel import schedules

    forward, backward = schedules.forward_step, schedules.backward_step
    ahead: list[None] = []

    def forward_step(*positional: Any, **named: Any) -> Any:
        ahead.append(None)
        return forward(*positional, **named)

    def backward_step(*positional: Any, **named: Any) -> Any:
        note = Path(os.environ[NOTES]) / f"rank_{dist.get_rank()}"
        if not note.exists():
            note.write_text(str(len(ahead)))
        return backward(*positional, **named)

    schedules.forward_step, schedules.backward_step = forward_step, backward_step


def test_more_micro_batches_are_under_way_between_meshes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MUTATION, f"{__name__}:note_the_warm_up")
    monkeypatch.setenv(NOTES, str(tmp_path))
    layout = Hetero("meshes", "llama", 3, "--micro-batch-size 1", ONE + ONE + ONE, (1, 2, 1))
    assert not run_all([layout.run(1)], tmp_path)["meshes"].error
    # One for each later stage, an extra one for each border, and the one that it goes on with.
    assert [int((tmp_path / f"rank_{rank}").read_text()) for rank in range(3)] == [2 + 2 + 1, 1 + 1 + 1, 1]


def test_a_checkpoint_of_meshes_is_written_beside_the_training(tmp_path: Path) -> None:
    layout = Meshes((Mesh(tp=2, layers=((3,),)), Mesh(layers=((1,),))))
    saved = tmp_path / "saved"
    asked = (
        "--hetero-layout",
        layout.to_json(),
        "--save",
        str(saved),
        "--save-interval",
        "3",
        "--async-save",
        "--tensorboard-dir",
        str(tmp_path / "tensorboard"),
        "--distributed-timeout-seconds-after-init",
        "300",
    )
    meshes = train(tmp_path / "meshes", 3, *MOCK_DATA, "--train-iters", str(STEPS), *asked)
    assert meshes.code == 0, meshes.output[-4000:]
    # By the last rank, of which there is one: no mesh has as many ranks as the job.
    assert len(list((tmp_path / "tensorboard").glob("events.*"))) == 1
    resumed = ("--load", str(saved), "--ckpt-step", "3")
    one = train(tmp_path / "one", 1, *MOCK_DATA, "--train-iters", str(STEPS), *resumed)
    assert one.code == 0, one.output[-4000:]
    assert one.losses() == pytest.approx({step: meshes.losses()[step] for step in (4, 5, 6)}, abs=2e-5)
