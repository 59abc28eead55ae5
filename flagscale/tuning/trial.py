"""One trial: a job like any other, started, watched and ended by the tuner."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flagscale.config.command import Request
from flagscale.errors import FlagScaleError, UserError
from flagscale.plan.prepare import prepare
from flagscale.run.rundir import RunDir
from flagscale.runners.base import runner_of
from flagscale.status.model import JobStatus
from flagscale.status.progress import records_of
from flagscale.status.watch import metrics_of, statuses
from flagscale.tuning.outcome import Outcome, outcome_of
from flagscale.values import LaunchPlan

_METRICS_BYTES, _OUTPUT_BYTES = 1 << 22, 1 << 18


class StopRequested(Exception):
    """Another command has asked this tuner to stop."""


def run_trial(
    request: Request, limit: float, is_stop_requested: Callable[[], bool], say: Callable[[str], None]
) -> Outcome:
    """Run a trial to its end, or for `limit` seconds; nothing of it runs afterwards, whatever happens.

    Raises:
        FlagScaleError: its hosts are not ready, or it cannot be started or stopped there: nothing was learnt.
        StopRequested: another command asks for the end.
    """
    try:
        prepared = prepare(request)
    except UserError as error:
        return Outcome("refused", failure=str(error.problems[0]).splitlines()[0])
    runner = runner_of(prepared.plan)
    plan = runner.require(prepared)
    try:
        runner.start(prepared, plan, None)
        status, is_cut = _watched(plan, limit, is_stop_requested, say)
    except BaseException:
        end_run(plan)
        raise
    if is_cut:
        end_run(plan)
    records = list(records_of(metrics_of(status, _METRICS_BYTES), _METRICS_BYTES))
    printed = _printed(status.plan) if status.failure else ""
    return outcome_of(status, records, printed, limit, is_cut=is_cut)


def _printed(plan: LaunchPlan) -> str:
    """Return the end of what the processes of all hosts have printed, as far as it can be read."""
    texts = []
    for node in plan.nodes:
        with suppress(FlagScaleError):  # the status reports a host that cannot be asked
            piece, _ = runner_of(plan).logs.read(plan, node, "output", -_OUTPUT_BYTES, _OUTPUT_BYTES)
            texts.append(piece.decode(errors="replace"))
    return "\n".join(texts)


def _watched(
    plan: LaunchPlan, limit: float, is_stop_requested: Callable[[], bool], say: Callable[[str], None]
) -> tuple[JobStatus, bool]:
    """Return the last status of a trial, and whether its time was over before it ended."""
    begun = time.monotonic()
    for status in statuses(plan, say):
        if is_stop_requested():
            raise StopRequested
        if status.phase == "queued":
            begun = time.monotonic()  # waiting for its turn is not the trial's own time
        elif not status.ended and time.monotonic() - begun > limit:
            return status, True
    return status, False


def end_run(plan: LaunchPlan) -> None:
    """End a trial on all hosts. Raises FlagScaleError with the hosts where that is not certain."""
    replies = runner_of(plan).stop(plan)
    failed = [f"{host.name}: {reply['message']}" for host, reply in replies.items() if not reply["ok"]]
    if failed:
        raise FlagScaleError(
            f"the trial in {plan.exp_dir} may still run: {'; '.join(failed)}; end it with action=stop"
        )


def end_trial(run_dir: Path) -> bool:
    """End whatever a tuner left running in a run directory; return whether a trial was started there."""
    plan = RunDir(run_dir).read_plan()
    if plan is None:
        return False
    end_run(plan)
    return True
