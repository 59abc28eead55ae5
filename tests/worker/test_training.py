"""The trainer on CPU: it learns, reports, resumes, and gives the same losses in every layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flagscale.run.checkpoints import TRACKER
from flagscale.run.manifest import MANIFEST, fault_of
from flagscale_testing.ranks.forked import Run, run_all
from flagscale_testing.ranks.training import MODEL, TP2_PP2, TRAIN_ITERS, Base, saving, train

SAME = pytest.approx


def test_the_loss_falls(base: Base) -> None:
    losses = base.ended.losses()
    assert sorted(losses) == list(range(1, TRAIN_ITERS + 1))
    assert losses[TRAIN_ITERS] < losses[1] - 0.5
    assert base.ended.failure is None


def test_every_logged_iteration_has_one_line_of_metrics(base: Base) -> None:
    logged = [line for line in base.ended.metrics if "lm_loss" in line]
    for number, line in enumerate(logged, 1):
        assert line["iteration"] == number
        assert line["train_iters"] == TRAIN_ITERS
        assert line["consumed_samples"] == 8 * number
        assert line["consumed_tokens"] == 8 * 64 * number
        assert line["learning_rate"] == 1e-2
        assert line["skipped"] == 0
        for name in ("grad_norm", "iteration_ms", "tokens_per_s", "tflops_per_gpu", "mem_bytes", "time"):
            assert line[name] > 0, name
        assert line["tokens_per_s"] == SAME(8 * 64 * 1000 / line["iteration_ms"])


def test_validation_is_reported(base: Base) -> None:
    evaluated = [line for line in base.ended.metrics if "validation_loss" in line]
    assert [line["iteration"] for line in evaluated][:2] == [3, 6]
    assert (
        f"iteration 3/{TRAIN_ITERS} | validation loss {evaluated[0]['validation_loss']:.4f}"
        in base.ended.output
    )


def test_the_output_is_readable(base: Base) -> None:
    last = base.ended.losses()[TRAIN_ITERS]
    assert (
        f"iteration {TRAIN_ITERS}/{TRAIN_ITERS} | loss {last:.4f} | lr 1.00e-02 | grad norm"
        in base.ended.output
    )
    assert "UserWarning" not in base.ended.output
    assert "FutureWarning" not in base.ended.output
    assert len(base.ended.output.splitlines()) < 200


@pytest.mark.slow  # test_files.py shows which checkpoint is chosen
def test_training_resumes_from_an_older_checkpoint_if_the_newest_is_damaged(
    base: Base, copy_of_base: Callable[[], Path], corpus: list[str]
) -> None:
    folder = copy_of_base()
    damaged = folder / "checkpoints" / "iter_0000006"
    shard = next(damaged.glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-100])
    leftover = folder / "checkpoints" / "iter_0000009"
    leftover.mkdir()
    (leftover / "__0_0.distcp").write_bytes(b"half")

    ended = train(folder, 4, *TP2_PP2, *corpus, *saving(folder / "checkpoints"))

    assert ended.code == 0, ended.output[-4000:]
    assert "falling back to the complete checkpoint of iteration 3" in ended.output
    assert not leftover.exists()
    assert [line["iteration"] for line in ended.metrics if "lm_loss" in line] == list(
        range(1, TRAIN_ITERS + 1)
    )
    assert ended.losses() == SAME(base.ended.losses(), abs=1e-5)
    assert (folder / "checkpoints" / TRACKER).read_text() == "6"
    assert (damaged / MANIFEST).is_file()
    assert fault_of(damaged) == ""


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        pytest.param(1, [], id="one process"),
        pytest.param(
            2,
            ["--pipeline-model-parallel-size", "2", "--num-virtual-stages-per-pipeline-rank", "2"],
            id="interleaved",
        ),
        pytest.param(2, ["--overlap-grad-reduce", "--overlap-param-gather"], id="data parallel"),
    ],
)
def test_another_layout_continues_the_run(
    base: Base, tmp_path: Path, corpus: list[str], ranks: int, layout: list[str]
) -> None:
    loading = ("--load", str(base.folder / "checkpoints"), "--ckpt-step", "3")
    argv = (*MODEL, *layout, *corpus, "--train-iters", str(TRAIN_ITERS), *loading)
    curve = run_all([Run("run", ranks, argv)], tmp_path)["run"]
    assert not curve.error
    expected = base.ended.losses()
    assert curve.losses == SAME([expected[i] for i in range(4, TRAIN_ITERS + 1)], abs=1e-5)


@pytest.mark.slow
def test_a_finished_run_ends_at_once(copy_of_base: Callable[[], Path], corpus: list[str], base: Base) -> None:
    folder = copy_of_base()
    ended = train(folder, 1, *corpus, *saving(folder / "checkpoints"))
    assert ended.code == 0, ended.output[-4000:]
    assert "nothing left to do" in ended.output
    assert ended.metrics == base.ended.metrics


def test_no_usable_checkpoint_is_an_error(copy_of_base: Callable[[], Path], corpus: list[str]) -> None:
    folder = copy_of_base()
    for shard in (folder / "checkpoints").glob("*/__0_0.distcp"):
        shard.unlink()
    ended = train(folder, 1, *corpus, *saving(folder / "checkpoints"))
    assert ended.code == 1
    assert ended.failure is not None
    assert ended.failure["exitcode"] == 2
    assert "can be used" in ended.failure["message"]
    assert "Traceback" not in ended.output
    assert len(list((folder / "checkpoints").glob("iter_*"))) == 2
