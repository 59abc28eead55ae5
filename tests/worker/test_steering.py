"""Data that is not trained on, and bad losses: real trainings of a few steps on forked ranks."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.hetero_layouts import LAYOUTS
from flagscale_testing.ranks.forked import Curve, Run, run_all
from flagscale_testing.ranks.training import MOCK_DATA, MODEL, read_metrics

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = ("--num-layers", "2", "--hidden-size", "32", "--num-attention-heads", "2", "--seq-length", "16")
TINY = (*MODEL, *MOCK_DATA, *SMALL, "--micro-batch-size", "2", "--global-batch-size", "4")
DECAYING = ("--lr-decay-style", "linear", "--lr-decay-iters", "10")


def broken_at(iteration: int, value: float, *, in_gradient: bool = False) -> None:
    """Multiply a loss, or only its gradient, in one iteration (counted from 1) on the last data parallel
    rank; a mutation of a run."""
    import torch
    from megatron.core import mpu
    from megatron.training import get_args

    from megatron.flagscale import forward

    original = forward.loss_func

    def loss_func(loss_mask: torch.Tensor, losses: torch.Tensor) -> Any:
        size = mpu.get_data_parallel_world_size()
        is_here = mpu.get_data_parallel_rank() == size - 1 and get_args().curr_iteration + 1 == iteration
        if not (is_here and torch.is_grad_enabled()):
            return original(loss_mask, losses)
        loss, tokens, report = original(loss_mask, losses if in_gradient else losses * value)
        return (loss * value if in_gradient else loss), tokens, report

    forward.loss_func = loss_func


def nan_at_4() -> None:
    broken_at(4, float("nan"))


def spike_at_4() -> None:
    broken_at(4, 30.0)


def broken_gradient_at_4() -> None:
    broken_at(4, float("inf"), in_gradient=True)


def steps(number: int, *more: str) -> tuple[str, ...]:
    return (*TINY, "--train-iters", str(number), *more)


def saving(folder: Path, interval: int) -> tuple[str, ...]:
    return ("--save", str(folder), "--load", str(folder), "--save-interval", str(interval))


def records(folder: Path) -> dict[int, dict[str, Any]]:
    return {record["iteration"]: record for record in read_metrics(folder / "metrics.jsonl")}


def losses(folder: Path) -> dict[int, float]:
    """Return the losses of the iterations that made an update."""
    return {number: one["lm_loss"] for number, one in records(folder).items() if not one["skipped"]}


@pytest.fixture(scope="module")
def skipping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("skipping")
    save = saving(folder / "saved", 3)
    skip = ("--skip-iters-range", "[2, 4]")
    runs = [
        Run("constant", 1, steps(5, "--lr", "0", "--min-lr", "0")),
        Run("constant skipped", 1, steps(5, "--lr", "0", "--min-lr", "0", *skip)),
        Run("all", 1, steps(5, *DECAYING)),
        # The samples of the third batch, but the first, and one of the fourth.
        Run("samples", 1, steps(5, *DECAYING, "--skip-samples-range", "[[9, 10], [12, 13]]")),
        Run("first part", 1, steps(3, *DECAYING, *skip, *save)),
        Run("second part", 1, steps(5, *DECAYING, *skip, *save, "--override-opt-param-scheduler")),
        Run("stages", 2, steps(5, *DECAYING, *skip, "--pipeline-model-parallel-size", "2")),
    ]
    curves = run_all(runs, folder)
    assert {name: curve.error for name, curve in curves.items()} == dict.fromkeys(curves, "")
    return folder


def test_skipped_iterations_read_their_data_and_make_no_update(skipping: Path) -> None:
    """With a learning rate of 0, a loss depends on the data alone."""
    every, some = losses(skipping / "constant"), losses(skipping / "constant skipped")
    assert len(set(every.values())) == 5
    assert some == {number: every[number] for number in (1, 2, 5)}


def test_skipped_iterations_count_but_do_not_advance_the_schedule(skipping: Path) -> None:
    found = records(skipping / "samples")
    assert [one["consumed_samples"] for one in found.values()] == [4, 8, 12, 16, 20]
    assert [one["skipped"] for one in found.values()] == [0, 0, 1, 1, 0]
    assert [one["tokens_per_s"] for one in found.values() if one["skipped"]] == [0, 0]
    rates = [one["learning_rate"] for one in records(skipping / "all").values()]
    assert len(set(rates)) == 5
    assert [found[number]["learning_rate"] for number in (1, 2, 5)] == rates[:3]


def test_a_run_resumes_inside_a_range_from_an_iteration_that_was_skipped(skipping: Path) -> None:
    assert list(records(skipping / "second part")) == [4, 5]
    assert losses(skipping / "second part") == {5: losses(skipping / "samples")[5]}


def test_stages_skip_alike(skipping: Path) -> None:
    assert losses(skipping / "stages") == pytest.approx(losses(skipping / "samples"), rel=1e-5)


def mutation(function: Any) -> dict[str, str]:
    return {"mutation": f"{__name__}:{function.__name__}"}


SKIP = ("--on-bad-loss", "skip")
SPIKES = ("--bad-loss-factor", "3", "--bad-loss-window", "2")


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Curve]]:
    folder = tmp_path_factory.mktemp("bad")
    stages = ("--pipeline-model-parallel-size", "2")
    back = (*saving(folder / "saved", 2), "--on-bad-loss", "rollback", "--max-rollbacks", "1")
    runs = [
        Run("left out", 2, steps(5, "--skip-iters-range", "[3, 4]")),
        Run("nan", 2, steps(5, *SKIP), **mutation(nan_at_4)),
        Run("nan on stages", 2, steps(5, *SKIP, *stages), **mutation(nan_at_4)),
        Run("gradient", 2, steps(5, *SKIP), **mutation(broken_gradient_at_4)),
        Run("spike", 2, steps(5, *SKIP, *SPIKES), **mutation(spike_at_4)),
        Run("stopped", 1, steps(5, *SPIKES), **mutation(spike_at_4)),
        Run("back", 2, steps(6, *back), **mutation(nan_at_4)),
        Run("again", 2, steps(6, *back), **mutation(nan_at_4)),
        Run("straight", 2, steps(6, "--skip-samples-range", "[8, 16]")),
    ]
    return folder, run_all(runs, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nan", "nan on stages", "gradient", "spike"])
def test_all_ranks_leave_out_the_update_of_a_bad_loss(bad: tuple[Path, dict[str, Curve]], name: str) -> None:
    folder, curves = bad
    assert curves[name].error == ""
    found = records(folder / name)
    assert [one["bad_losses"] for one in found.values()] == [0, 0, 0, 1, 1]
    assert [one["skipped"] for one in found.values()] == [0, 0, 0, 1, 0]
    expected = losses(folder / "left out")
    assert losses(folder / name) == (
        pytest.approx(expected, rel=1e-5) if name == "nan on stages" else expected
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nan", "iteration 4: the loss is NaN: no update with samples 12 to 15"),
        ("gradient", "iteration 4: the gradient is NaN or infinite: no update with samples 12 to 15"),
        ("spike", "is more than 3 times 5."),
        ("stopped", "(samples 12 to 15); set `on_bad_loss: skip` or `rollback` to continue without them"),
    ],
)
def test_a_bad_loss_is_reported_once(bad: tuple[Path, dict[str, Curve]], name: str, says: str) -> None:
    assert (bad[0] / name / "output").read_text().count(says) == 1


@pytest.mark.slow
def test_unequal_meshes_leave_out_alike(tmp_path: Path) -> None:
    run = next(layout for layout in LAYOUTS if layout.name == "llama: dp2 > 1 rank").run(5)
    left_out = replace(run, name="left out", argv=(*run.argv, "--skip-iters-range", "[3, 4]"))
    bad = replace(run, name="bad", argv=(*run.argv, *SKIP), **mutation(nan_at_4))
    curves = run_all([left_out, bad], tmp_path)
    assert (curves["left out"].error, curves["bad"].error) == ("", "")
    assert [one["bad_losses"] for one in records(tmp_path / "bad").values()] == [0, 0, 0, 1, 1]
    assert losses(tmp_path / "bad") == losses(tmp_path / "left out")


@pytest.mark.slow
def test_a_rollback_leaves_out_the_samples_since_the_checkpoint(bad: tuple[Path, dict[str, Curve]]) -> None:
    folder, curves = bad
    says = "RollBackError: - iteration 4: the loss is NaN: going back to the newest complete checkpoint"
    assert says in curves["back"].error
    assert curves["again"].error == ""
    assert list(records(folder / "again")) == [3, 4, 5, 6]
    straight = losses(folder / "straight")
    assert losses(folder / "again") == {number: straight[number] for number in (5, 6)}
    (rollback,) = json.loads((folder / "saved" / "rollbacks.json").read_text())
    assert rollback == {"iteration": 4, "why": "the loss is NaN", "first": 8, "end": 16}


def slow_first_rank() -> None:
    """Make the first rank sleep in each of its forward passes (a mutation of a run)."""
    import time

    from megatron.training import get_args

    from megatron.flagscale import forward

    original = forward.loss_func

    def loss_func(*arguments: Any) -> Any:
        if get_args().rank == 0:
            time.sleep(0.5)
        return original(*arguments)

    forward.loss_func = loss_func


@pytest.mark.slow
def test_a_slow_rank_is_named_after_five_logged_iterations(tmp_path: Path) -> None:
    run = Run("slow", 2, steps(8), **mutation(slow_first_rank))
    assert run_all([run], tmp_path)["slow"].error == ""
    found = [one.get("slow_ranks", []) for one in records(tmp_path / "slow").values()]
    assert found[:4] == [[]] * 4
    # The first passes take long on both ranks.
    ((slow,),) = found[-1:]
    assert (slow["rank"], slow["host"]) == (0, socket.gethostname())
    assert slow["factor"] > 1.5
    output = (tmp_path / "slow" / "output").read_text()
    assert output.count(f"flagscale: rank 0 on {socket.gethostname()} computes ") == 1
