"""The progress of a run, read from the end of its metrics."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flagscale.status.progress import TAIL_BYTES, Evaluation, Progress, read_progress
from flagscale.status.text import progress_text, slow_rank_lines


def line(iteration: int, **more: Any) -> str:
    return (
        json.dumps({"iteration": iteration, "iteration_ms": 500.0, "train_iters": 100, "time": 10.0, **more})
        + "\n"
    )


def read(text: str, since: float = 0.0) -> Progress | None:
    return read_progress(text.encode()[-TAIL_BYTES:], since)


def test_without_a_complete_record_there_is_no_progress() -> None:
    for text in ("", "\n", "{", line(1)[:-1], "[]\n", "null\n", '{"iteration": 1}\n'):
        assert read(text) is None


def test_the_last_complete_line_counts() -> None:
    progress = read(line(1) + line(2) + line(3)[:20])
    assert progress is not None
    assert (progress.iteration, progress.train_iters, progress.seconds_left) == (2, 100, 49.0)


def test_other_lines_are_ignored() -> None:
    validation = json.dumps({"iteration": 2, "validation_loss": 1.0, "time": 11.0}) + "\n"
    progress = read(line(2) + validation + "no json\n" + '{"iteration_ms": 1}\n')
    assert progress is not None
    assert progress.iteration == 2


def test_the_newest_evaluation_of_each_set_is_found() -> None:
    values = [
        ("validation_loss/web", 2, 1.0),
        ("validation_loss/code", 2, 3.0),
        ("validation_loss/web", 4, 0.5),
    ]
    evaluated = [json.dumps({"iteration": number, key: loss, "time": 11.0}) for key, number, loss in values]
    progress = read("\n".join([line(2).strip(), *evaluated, line(4)]))
    assert progress is not None
    assert progress.evaluations == {
        "validation_loss/web": Evaluation(0.5, 4),
        "validation_loss/code": Evaluation(3.0, 2),
    }


def test_a_restart_may_go_back_and_earlier_runs_are_ignored() -> None:
    text = line(50, time=5.0) + line(41, time=20.0, iteration_ms=100.0)
    progress = read(text)
    assert progress is not None
    assert progress.iteration == 41
    progress = read(text, since=10.0)
    assert progress is not None
    assert progress.seconds_left == pytest.approx(5.9)
    assert read(text, since=30.0) is None


def test_only_the_end_of_a_long_file_is_read() -> None:
    progress = read("".join(line(number, iteration_ms=float(number)) for number in range(5000)))
    assert progress is not None
    assert progress.iteration == 4999
    progress = read('{"iteration": 1, "iteration_ms": 1, "x": "' + "y" * 50000 + '"}\n' + line(7))
    assert progress is not None
    assert progress.iteration == 7


def test_seconds_left_without_a_known_end_and_past_the_end() -> None:
    progress = read(line(3, train_iters=None))
    assert progress is not None
    assert (progress.train_iters, progress.seconds_left) == (None, None)
    progress = read(line(101))
    assert progress is not None
    assert progress.seconds_left == 0


def test_text_of_progress() -> None:
    record = {
        "iteration": 120,
        "train_iters": 160,
        "lm_loss": 5.9123,
        "tokens_per_s": 3120.0,
        "tflops_per_gpu": 0.4,
    }
    reported = progress_text(Progress(record, 63.4))
    assert reported == "iteration 120/160  loss 5.9123  3.12k tokens/s  0.4 TFLOP/s per device  1m03s left"
    assert progress_text(Progress({"iteration": 3, "skipped": 1}, None)) == "iteration 3  1 skipped"
    shown = progress_text(Progress({"iteration": 3, "bad_losses": 2}, None))
    assert shown == "iteration 3  2 bad losses"
    assert progress_text(Progress({"iteration": 3, "bad_losses": 1}, None)) == "iteration 3  1 bad loss"
    assert progress_text(Progress({"iteration": 3, "bad_losses": 0}, None)) == "iteration 3"
    assert progress_text(Progress({"iteration": 3, "lm_loss": float("nan")}, None)) == "iteration 3  loss nan"


def test_slow_ranks_are_named() -> None:
    slow = [{"rank": 3, "host": "node1", "factor": 1.834}]
    lines = slow_rank_lines(Progress({"iteration": 3, "slow_ranks": slow}, None))
    assert lines == ["rank 3 on node1 takes 1.83 times as long as its stage's median"]
    assert slow_rank_lines(Progress({"iteration": 3}, None)) == []
