"""Samples that are really computed in trainings that leave out data: in programs with data of each kind."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from flagscale_testing.conversations import drawn, write_conversations
from flagscale_testing.energon import conversation, write_folder
from flagscale_testing.jobs.numbered import computed
from flagscale_testing.pictures import write_tokenizer
from flagscale_testing.ranks.conversations import PROGRAM as CONVERSATIONS
from flagscale_testing.ranks.forked import Curve, Run, run_all
from flagscale_testing.ranks.training import MODEL as WITH_BATCH
from tests.worker.test_picture_training import MODEL as PICTURES
from tests.worker.test_steering import losses, records, saving

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

_BATCH = WITH_BATCH.index("--global-batch-size")
MODEL = (*WITH_BATCH[:_BATCH], *WITH_BATCH[_BATCH + 2 :])
NUMBERED = "flagscale_testing.jobs.numbered:train"
TINY = shlex.split("""
    --num-layers 2 --hidden-size 32 --num-attention-heads 2 --seq-length 16 --micro-batch-size 1
    --tokenizer-type NullTokenizer --vocab-size 31 --num-workers 0
""")
SCHEDULED = '--step-batch-size-schedule "0:2 64:4" --train-samples 20'
"""Batches of 2 samples for the first 64 tokens, which are 4 samples, then of 4."""
CASES: dict[str, tuple[int, str, dict[int, range]]] = {
    "ranks": (
        2,
        '--global-batch-size 4 --skip-samples-range "[[5, 6], [12, 17]]"',
        {1: range(4), 3: range(8, 12), 6: range(20, 24)},
    ),
    "stages": (
        2,
        '--global-batch-size 4 --skip-samples-range "[[5, 6], [12, 17]]" --pipeline-model-parallel-size 2',
        {1: range(4), 3: range(8, 12), 6: range(20, 24)},
    ),
    "overlapping": (
        1,
        '--global-batch-size 4 --skip-samples-range "[[4, 9], [6, 13]]" --skip-iters-range "[3, 5]"',
        {1: range(4), 6: range(20, 24)},
    ),
    "batches that grow": (
        2,
        f'{SCHEDULED} --skip-samples-range "[3, 5]" --skip-iters-range "[4, 5]"',
        {1: range(2), 4: range(8, 12), 6: range(16, 20)},
    ),
    "beyond the end": (
        1,
        '--global-batch-size 4 --skip-samples-range "[20, 900]"',
        {one: range(4 * one - 4, 4 * one) for one in range(1, 6)},
    ),
}
"""Of six iterations: the ranks, the arguments, and the samples that are computed, by iteration."""


def numbered(name: str, ranks: int, folder: Path, until: int, *more: str) -> Run:
    (folder / f"computed {name}").mkdir()
    until_then = () if "--train-samples" in more else ("--train-iters", str(until))
    own = ("--computed-samples", str(folder / f"computed {name}"), *until_then)
    return Run(name, ranks, (*MODEL, *TINY, *own, *more), NUMBERED)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Curve]]:
    folder = tmp_path_factory.mktemp("cases")
    runs = [numbered(name, case[0], folder, 6, *shlex.split(case[1])) for name, case in CASES.items()]
    return folder, run_all(runs, folder)


@pytest.mark.parametrize("name", CASES)
def test_exactly_the_samples_outside_of_the_ranges_are_computed(
    cases: tuple[Path, dict[str, Curve]], name: str
) -> None:
    folder, curves = cases
    assert curves[name].error == ""
    stages = 2 if name == "stages" else 1
    expected = {number: sorted([*some] * stages) for number, some in CASES[name][2].items()}
    assert computed(folder / f"computed {name}") == expected
    assert [number for number, one in records(folder / name).items() if not one["skipped"]] == [*expected]


def test_ranges_may_change_when_a_run_resumes_within_one(tmp_path: Path) -> None:
    save = (*saving(tmp_path / "saved", 3), "--global-batch-size", "4", "--override-opt-param-scheduler")
    runs = [
        numbered("first", 1, tmp_path, 3, *save, "--skip-samples-range", "[8, 16]"),
        numbered("then", 2, tmp_path, 6, *save, "--skip-samples-range", "[[8, 16], [20, 21]]"),
    ]
    assert {curve.error for curve in run_all(runs, tmp_path).values()} == {""}
    assert computed(tmp_path / "computed first") == {1: [*range(4)], 2: [*range(4, 8)]}
    assert computed(tmp_path / "computed then") == {5: [*range(16, 20)]}


@pytest.mark.parametrize("interval", [2, 3], ids=["saved before", "saved at the bad loss"])
def test_a_training_that_stopped_at_a_bad_loss_continues_without_its_samples(
    tmp_path: Path, interval: int
) -> None:
    save = (*saving(tmp_path / "saved", interval), "--global-batch-size", "4", "--nan-sample", "13")
    bad = ("--skip-samples-range", "[12, 16]")
    runs = [
        numbered("stopped", 2, tmp_path, 6, *save),
        numbered("skipped", 2, tmp_path, 6, *save, *bad),
        numbered("not saved", 1, tmp_path, 6, "--global-batch-size", "4", "--nan-sample", "13"),
    ]
    curves = run_all(runs, tmp_path)
    says = (
        "iteration 4: the loss is NaN or infinite, also when it was repeated (samples 12 to 15); set `on_bad"
    )
    assert says in curves["stopped"].error
    assert says in curves["not saved"].error
    assert curves["skipped"].error == ""
    again = range(interval + 1, 7)
    assert computed(tmp_path / "computed skipped") == {
        number: [*range(4 * number - 4, 4 * number)] for number in again if number != 4
    }


ROLLBACK = ("--global-batch-size", "4", "--on-bad-loss", "rollback", "--max-rollbacks", "1")


@pytest.mark.parametrize(
    ("more", "stages"),
    [("", 1), ("--pipeline-model-parallel-size 2", 2), ("--async-save --save-interval 1", 1), ("--bf16", 1)],
    ids=["ranks", "stages", "async", "bf16"],
)
def test_a_rollback_leaves_out_samples_for_ever(tmp_path: Path, more: str, stages: int) -> None:
    save = (*saving(tmp_path / "saved", 2), *ROLLBACK, *shlex.split(more), "--override-opt-param-scheduler")
    runs = [
        numbered("first", 2, tmp_path, 6, *save, "--nan-sample", "13"),
        numbered("then", 2, tmp_path, 6, *save, "--nan-sample", "13"),
        numbered("longer", 2, tmp_path, 8, *save, "--nan-sample", "26"),
    ]
    curves = run_all(runs, tmp_path)
    assert "RollBackError: - iteration 4: the loss is NaN: going back to the newest" in curves["first"].error
    assert curves["then"].error == ""
    assert computed(tmp_path / "computed then") == {
        number: sorted([*range(4 * number - 4, 4 * number)] * stages) for number in (5, 6)
    }
    says = (
        "iteration 7: the loss is NaN, after 1 rollback: look at its samples (24 to 27), and raise `max_roll"
    )
    assert says in curves["longer"].error


def test_a_rollback_without_a_checkpoint_begins_again(tmp_path: Path) -> None:
    save = (*saving(tmp_path / "saved", 100), *ROLLBACK, "--nan-sample", "5")
    runs = [numbered("first", 1, tmp_path, 4, *save), numbered("then", 1, tmp_path, 4, *save)]
    curves = run_all(runs, tmp_path)
    assert "RollBackError: - iteration 2: the loss is NaN" in curves["first"].error
    assert curves["then"].error == ""
    assert computed(tmp_path / "computed then") == {3: [*range(8, 12)], 4: [*range(12, 16)]}
    assert (tmp_path / "then" / "output").read_text().count("after a rollback, samples 0 to 7 are left") == 1


def compared(folder: Path, program: str, argv: tuple[str, ...], save: tuple[str, ...]) -> tuple[Any, Any]:
    """Return the losses of six iterations with a learning rate of 0, and of a training that leaves out the
    third to the fifth, and is resumed after the fourth."""
    constant = (*argv, "--lr", "0", "--min-lr", "0")
    skip = ("--skip-iters-range", "[2, 5]", *save)
    runs = [
        Run("all", 1, (*constant, "--train-iters", "6"), program),
        Run("first", 1, (*constant, *skip, "--train-iters", "6", "--exit-interval", "4"), program),
        Run("then", 1, (*constant, *skip, "--train-iters", "6"), program),
    ]
    curves = run_all(runs, folder)
    assert (curves["all"].error, curves["then"].error) == ("", "")
    assert list(records(folder / "then")) == [5, 6]
    return losses(folder / "all"), losses(folder / "first") | losses(folder / "then")


def test_conversations_that_are_left_out_are_read(tmp_path: Path) -> None:
    path = write_conversations(tmp_path / "train", drawn(24))
    data = shlex.split(f"--train-data-path {path} --seq-length 64 --calculate-per-token-loss --eval-iters 0")
    argv = (*MODEL, *TINY, "--vocab-size", "250", "--global-batch-size", "2", *data)
    every, some = compared(tmp_path, CONVERSATIONS, argv, saving(tmp_path / "saved", 2))
    assert len({*every.values()}) > 3
    assert some == {number: every[number] for number in (1, 2, 6)}


def test_pictures_that_are_left_out_are_read(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    write_folder(tmp_path / "data", [conversation(one) for one in range(64)], shards=4, split=(0.75, 0.25, 0))
    data = (
        f"--tokenizer-model {tmp_path}/tokenizer --data-path {tmp_path}/data --num-workers 2 --eval-iters 0"
    )
    argv = tuple(shlex.split(f"{PICTURES} {data}"))
    every, some = compared(tmp_path, "flagscale_testing.energon:train", argv, saving(tmp_path / "saved", 2))
    assert len({*every.values()}) > 3
    assert some == {number: every[number] for number in (1, 2, 6)}
