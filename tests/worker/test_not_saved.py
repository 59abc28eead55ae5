"""A run whose own checkpoints leave out state resumes with all state of the checkpoint that it loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagscale_testing.ranks.forked import Run, run_all
from flagscale_testing.ranks.training import MOCK_DATA, MODEL, saving

pytestmark = pytest.mark.filterwarnings("ignore")


def test_state_that_is_not_saved_is_loaded(tmp_path: Path) -> None:
    plain = [word for word in MODEL if word != "--use-distributed-optimizer"]
    runs = {"shared": MODEL, "plain": plain}

    def argv(name: str, *more: str) -> tuple[str, ...]:
        short = ("--num-layers", "1", "--save-interval", "2", "--load", str(tmp_path / "checkpoints" / name))
        return (*runs[name], *MOCK_DATA, *short, *more)

    firsts = [
        Run(
            f"first_{name}",
            1,
            argv(name, "--save", str(tmp_path / "checkpoints" / name), "--train-iters", "2"),
        )
        for name in runs
    ]
    run_all(firsts, tmp_path)
    later = ("--train-iters", "4", "--override-opt_param-scheduler")
    resumed = [
        Run(f"{name}{''.join(left_out)}", 1, argv(name, *later, *left_out))
        for name in runs
        for left_out in ((), ("--no-save-optim",), ("--no-save-rng",))
    ]
    curves = run_all(resumed, tmp_path)
    for name in runs:
        whole = curves[name]
        assert len(whole.losses) == 2
        for left_out in ("--no-save-optim", "--no-save-rng"):
            assert curves[name + left_out].error == ""
            assert curves[name + left_out].losses == whole.losses


@pytest.mark.slow
def test_a_checkpoint_without_the_state_of_the_optimizer_says_how_to_continue(tmp_path: Path) -> None:
    short = ("--num-layers", "1", "--no-save-optim", "--override-opt_param-scheduler")
    argv = (*MODEL, *MOCK_DATA, *saving(tmp_path / "checkpoints"), *short)
    longer = (*argv, "--train-iters", "3")
    runs = [
        Run("first", 1, (*argv, "--train-iters", "2")),
        Run("resumed", 1, longer),
        Run("without", 1, (*longer, "--no-load-optim")),
    ]
    curves = run_all(runs, tmp_path)
    assert "set `no_load_optim: true` to continue without it" in curves["resumed"].error
    assert "KeyError" not in curves["resumed"].error
    assert len(curves["without"].losses) == 1
