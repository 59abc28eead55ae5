"""Decide what follows when a begin of a job has ended: nothing, or another begin, without the lost hosts."""

from __future__ import annotations

from collections.abc import Sequence

from flagscale.formats import count
from flagscale.frozen import dataclass
from flagscale.runners.slurm.ledger import Begin, End

_MORE_TIME = "give them more with experiment.runner.slurm.signal: B:USR1@SECONDS"


@dataclass(frozen=True)
class Ended:
    """How a begin has ended, as the program in the job knows it."""

    phases: tuple[str, ...]
    """The last phases of the hosts; `starting` and `running` are those of hosts that have reported no end."""
    failures: int = 0
    """The failed attempts of this begin, the last one included."""
    why: str = ""
    """The message of the first failure."""
    lost: tuple[str, ...] = ()
    """The hosts whose supervisors have reported no end, although those of the other hosts have ended."""
    is_at_limit: bool = False
    """Whether Slurm has announced the time limit."""
    is_terminated: bool = False
    """Whether Slurm ends the job: it was cancelled, or its hosts are taken."""
    is_requeued: bool = False
    """Whether Slurm itself has put the job in the queue again, after preemption or after it lost a host."""
    down: tuple[str, ...] = ()
    """The hosts that Slurm has found to be down."""
    stop_requested: bool = False
    """Whether a stop was requested by a command of ours."""


@dataclass(frozen=True)
class Decision:
    """What is recorded of the end, and what follows."""

    end: End
    reason: str
    requeues: bool = False
    """Whether the job has to be put in the queue again; not if Slurm has done so already."""
    excluded: tuple[str, ...] = ()
    """The hosts on which it must not begin again."""


def decide(ended: Ended, is_wanted: bool, failures_before: int, max_restarts: int) -> Decision:
    """Return what follows.

    Args:
        is_wanted: whether the user wants the job to begin again (`experiment.runner.slurm.requeue`).
        failures_before: the failed attempts of all earlier begins.
        max_restarts: how many failures may be followed by another attempt; the time limit and preemption are
            no failures.
    """
    if ended.phases and all(phase == "finished" for phase in ended.phases):
        return Decision("finished", "")
    if ended.stop_requested:
        return Decision("stopped", "stopped by action=stop")
    if ended.is_requeued or (ended.is_terminated and ended.down):
        if ended.down:
            what = f"{', '.join(ended.down)} went down"
            return Decision("node lost", what if ended.is_requeued else f"{what}; Slurm ended the job")
        return Decision("preempted", "Slurm has put the job in the queue again, because it needs its hosts")
    if ended.is_terminated and ended.is_at_limit:
        what = "the time limit came before all ranks had saved and ended"
        return Decision("time limit", f"{what}; {_MORE_TIME}", requeues=is_wanted)
    if ended.is_terminated:
        return Decision("stopped", "the job was cancelled in Slurm")
    has_failed = "failed" in ended.phases or bool(ended.lost) or not ended.phases
    if ended.is_at_limit and not has_failed:
        if is_wanted:
            return Decision("time limit", "stopped before the time limit, to begin again", requeues=True)
        hint = "to let it begin again, set experiment.runner.slurm.requeue: true"
        return Decision("time limit", f"stopped by the time limit; {hint}")
    if ended.lost:
        failures = failures_before + max(ended.failures, 1)
        what = f"{', '.join(ended.lost)} did not report its end"
        if is_wanted and failures <= max_restarts:
            again = f"the job begins again without it ({failures} of {count(max_restarts, 'restart')})"
            return Decision("node lost", f"{what}; {again}", requeues=True, excluded=ended.lost)
        return Decision("node lost", f"{what}{_no_more(is_wanted, failures, max_restarts)}")
    if has_failed:
        return Decision("failed", ended.why or "the job could not start")
    return Decision("stopped", "its ranks were stopped")


def _no_more(is_wanted: bool, failures: int, max_restarts: int) -> str:
    if not is_wanted:
        return "; to let the job begin again without it, set experiment.runner.slurm.requeue: true"
    return f"; it is failure {failures}, and experiment.runner.max_restarts is {max_restarts}"


def failures_of(begins: Sequence[Begin]) -> int:
    """Return how many attempts have failed in these begins; one that was cut off lost its first host."""
    return sum(begin.failures or (not begin.end or begin.end == "node lost") for begin in begins)
