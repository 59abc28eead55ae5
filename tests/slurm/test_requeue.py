"""What follows when a begin of a job has ended: pure decisions."""

from __future__ import annotations

import pytest

from flagscale.runners.slurm.ledger import Begin
from flagscale.runners.slurm.requeue import Ended, decide, failures_of

STOPPED, FAILED = ("stopped", "stopped"), ("failed", "failed")


@pytest.mark.parametrize(
    ("ended", "end", "requeues"),
    [
        (Ended(("finished", "finished")), "finished", False),
        (Ended(("finished", "finished"), is_at_limit=True), "finished", False),
        (Ended(STOPPED, is_at_limit=True), "time limit", True),
        (Ended(("running", "running"), is_at_limit=True, is_terminated=True), "time limit", True),
        (Ended(STOPPED, is_at_limit=True, stop_requested=True), "stopped", False),
        (Ended(STOPPED, is_terminated=True), "stopped", False),
        (Ended(STOPPED, is_terminated=True, is_requeued=True), "preempted", False),
        (Ended(STOPPED, is_terminated=True, is_requeued=True, down=("n2",)), "node lost", False),
        (Ended(STOPPED), "stopped", False),
        (Ended(FAILED, failures=1, why="rank 0: boom"), "failed", False),
        (Ended(FAILED, failures=1, is_at_limit=True), "failed", False),
        (Ended(("failed", "running"), failures=1, lost=("n2",)), "node lost", True),
        (Ended(()), "failed", False),
    ],
)
def test_with_requeue(ended: Ended, end: str, requeues: bool) -> None:
    decision = decide(ended, is_wanted=True, failures_before=0, max_restarts=1)
    assert (decision.end, decision.requeues) == (end, requeues)
    assert decision.excluded == (ended.lost if requeues else ())
    unwanted = decide(ended, is_wanted=False, failures_before=0, max_restarts=1)
    assert (unwanted.end, unwanted.requeues, unwanted.excluded) == (end, False, ())


def test_only_failures_count_against_max_restarts() -> None:
    lost = Ended(("failed", "running"), failures=1, lost=("n2",))
    assert decide(lost, True, failures_before=1, max_restarts=2).requeues
    refused = decide(lost, True, failures_before=2, max_restarts=2)
    assert not refused.requeues
    assert refused.reason == (
        "n2 did not report its end; it is failure 3, and experiment.runner.max_restarts is 2"
    )
    assert decide(Ended(STOPPED, is_at_limit=True), True, failures_before=9, max_restarts=0).requeues


def test_the_failures_of_earlier_begins() -> None:
    def begin(end: str, failures: int = 0) -> Begin:
        return Begin("7", 0, "run", ("n1",), 1.0, 2.0, end, failures=failures)  # type: ignore[arg-type]

    assert failures_of([begin("time limit"), begin("preempted"), begin("stopped")]) == 0
    assert failures_of([begin("node lost"), begin("failed", 2), begin("time limit", 1)]) == 4
    assert failures_of([begin("")]) == 1


def test_what_to_do_is_said_if_requeue_is_not_wanted() -> None:
    decision = decide(Ended(STOPPED, is_at_limit=True), False, 0, 0)
    assert decision.reason.endswith("set experiment.runner.slurm.requeue: true")
