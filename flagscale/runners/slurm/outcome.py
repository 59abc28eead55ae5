"""The phase of a job: what Slurm says of it, and what its hosts and the job itself have recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flagscale.formats import count
from flagscale.frozen import dataclass
from flagscale.remote.launcher import HostStatus
from flagscale.run.failure import Failure
from flagscale.run.state import ENDED
from flagscale.runners.base import QueuePhase
from flagscale.runners.slurm.identity import Lookup
from flagscale.runners.slurm.ledger import Begin, Ledger
from flagscale.runners.slurm.reasons import clock, end_text, waits_text
from flagscale.runners.slurm.records import JobRecord

_LATE = 10.0
"""Seconds after the end of a job within which the last states of its hosts may still become visible here."""
_BEGINS_AGAIN = ("time limit", "preempted", "node lost")
"""The ends of a begin after which a job that requeues itself does so."""
_END_TEXTS: Mapping[str, str] = {
    "time limit": "stopped at the time limit",
    "preempted": "stopped because another job takes the hosts",
    "node lost": "a host was lost",
}


@dataclass(frozen=True)
class Outcome:
    """The phase of a job, why it is in it, and the states of its hosts as they must be by now."""

    phase: QueuePhase | None
    """None: the phase follows from the states."""
    reason: str
    hosts: tuple[HostStatus, ...]


def outcome(known: Ledger, answer: Lookup, hosts: Sequence[HostStatus], now: float) -> Outcome:
    """Return the outcome of the newest job so far; `now` in seconds since the epoch.

    Args:
        hosts: the states that the hosts have recorded. They must have been read after Slurm's answer came.
    """
    hosts, record = tuple(hosts), answer.record
    newest = known.own_begins[-1] if known.own_begins else None
    if record is None and answer.trouble:
        return _unanswered(known, answer, hosts, newest)
    if record is None:
        reason = f"Slurm no longer knows job {known.job_id}"
        if answer.stranger:
            reason += (
                f": its id is that of another job now, `{answer.stranger.name}` of {answer.stranger.user}"
            )
        return _over(known, hosts, reason, newest, now)
    if record.is_over:
        if _may_be_late(record, hosts, newest, now):
            reason = (
                f"job {record.job_id} is over ({record.state}); its hosts have not reported their ends yet"
            )
            return Outcome("stopping", reason, hosts)
        return _over(known, hosts, end_text(record, now), newest, now, record)
    if record.is_waiting and not known.is_ours:
        return _over(known, hosts, "the job whose step it was is in the queue again", newest, now)
    if record.is_waiting:
        again = f"{begin_end_text(newest, now)}; " if newest and record.restarts else ""
        return Outcome("queued", again + waits_text(record, now), _without_states(hosts))
    return _active(known, record, hosts, newest)


def _active(known: Ledger, record: JobRecord, hosts: tuple[HostStatus, ...], newest: Begin | None) -> Outcome:
    """Return the outcome of a job that Slurm runs, begins or ends."""
    doing = f"job {record.job_id} is {record.state.lower()} on {count(record.node_count, 'host')}"
    if known.is_ours and (newest is None or newest.number < record.restarts):
        return Outcome("starting", f"{doing} and prepares the start of its ranks", _without_states(hosts))
    if not any(host.state for host in hosts):
        if newest and newest.end:
            return Outcome("failed", newest.reason or f"the start {newest.end}", hosts)
        return Outcome("starting", f"{doing} and starts its ranks", hosts)
    if _may_begin_again(known, hosts, newest):
        return Outcome("stopping", f"{doing}, and decides whether to begin again", hosts)
    return Outcome(None, "" if record.state == "RUNNING" else doing, hosts)


def _unanswered(
    known: Ledger, answer: Lookup, hosts: tuple[HostStatus, ...], newest: Begin | None
) -> Outcome:
    """Return what the files say if Slurm does not answer."""
    reason = f"{answer.trouble}; what follows is what job {known.job_id} has recorded itself"
    if newest is None and known.is_ours:
        return Outcome("queued", f"{reason}: it has not begun", _without_states(hosts))
    if not any(host.state for host in hosts):
        return Outcome("starting", reason, hosts)
    return Outcome("stopping" if _may_begin_again(known, hosts, newest) else None, reason, hosts)


def _over(
    known: Ledger,
    hosts: tuple[HostStatus, ...],
    why: str,
    newest: Begin | None,
    now: float,
    record: JobRecord | None = None,
) -> Outcome:
    """Return the outcome of a job that is over, whether or not its hosts could report that.

    `why`: what Slurm says of the end; "" if it completed.
    """
    was_cancelled = known.stop_requested is not None or (record is not None and record.state == "CANCELLED")
    said = begin_end_text(newest, now) if newest and newest.end not in ("", "finished") else ""
    if not any(host.state for host in hosts):
        if was_cancelled:
            return Outcome("stopped", why if known.stop_requested is None else "cancelled", hosts)
        return Outcome(
            "failed", f"its ranks were not started: {said or why or 'its script has ended'}", hosts
        )
    if all(host.ended for host in hosts) and was_cancelled and newest and newest.end in _BEGINS_AGAIN:
        return Outcome("stopped", "cancelled while it waited to begin again", hosts)
    is_killed = record is not None and record.state == "FAILED" and known.is_ours
    if is_killed and not was_cancelled and _only_stopped(hosts) and newest and not newest.end:
        return Outcome("failed", "the job's program was ended before it could record why", hosts)
    if all(host.ended for host in hosts):
        # The failure of a rank says more than the exit code of the script that waited for it.
        is_expected = record is None or (record.state == "FAILED" and not record.reason.startswith("Job"))
        return Outcome(None, said or ("" if is_expected or known.stop_requested else why), hosts)
    closed = tuple(_closed(host, why or "its job is over", was_cancelled) for host in hosts)
    return Outcome(None, said or why, closed)


def _only_stopped(hosts: tuple[HostStatus, ...]) -> bool:
    """Return whether all hosts were stopped, and none has finished or failed by itself."""
    return all(host.state and host.state.phase == "stopped" for host in hosts)


def _may_be_late(record: JobRecord, hosts: tuple[HostStatus, ...], newest: Begin | None, now: float) -> bool:
    """Return whether hosts may have written states that are not visible here yet."""
    has_begun = newest is not None and not newest.end and newest.number == record.restarts
    is_recent = record.end is not None and now - record.end < _LATE
    return has_begun and is_recent and not all(host.state and host.ended for host in hosts)


def _may_begin_again(known: Ledger, hosts: tuple[HostStatus, ...], newest: Begin | None) -> bool:
    """Return whether all hosts have ended, but the job may be about to requeue itself."""
    if not (known.is_ours and known.requeues) or known.stop_requested or newest is None:
        return False
    return newest.end in ("", *_BEGINS_AGAIN) and all(host.state and host.ended for host in hosts)


def begin_end_text(begin: Begin, now: float) -> str:
    """Return when and why a begin of a job ended."""
    why = begin.reason or _END_TEXTS.get(begin.end, begin.end) or "nobody could record its end"
    return f"{why} ({clock(begin.ended, now)})" if begin.ended else why


def _without_states(hosts: tuple[HostStatus, ...]) -> tuple[HostStatus, ...]:
    """Return the hosts without the states of an earlier begin."""
    return tuple(HostStatus(host.host, None) for host in hosts)


def _closed(host: HostStatus, why: str, was_cancelled: bool) -> HostStatus:
    """Return the last state of a host whose supervisor could not record its end."""
    if host.state is None or host.state.phase in ENDED:
        return host
    if was_cancelled:
        return HostStatus(host.host, host.state.changed(phase="stopped"))
    failure = Failure(f"{why}; the supervisor of this host could not report its end")
    return HostStatus(host.host, host.state.changed(phase="failed", exit_code=1, failure=failure))
