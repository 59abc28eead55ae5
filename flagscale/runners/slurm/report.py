"""Report on a run: what Slurm says of its job, joined with the states that its hosts write.

The hosts share the run directory with this command, so no host is asked: one question to Slurm's controller
is enough, and without its answer the files still tell most.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flagscale.errors import FlagScaleError
from flagscale.formats import duration
from flagscale.frozen import asdict
from flagscale.remote.launcher import HostStatus
from flagscale.run.rundir import RunDir
from flagscale.run.state import read_state
from flagscale.runners.base import RunReport
from flagscale.runners.slurm import ledger
from flagscale.runners.slurm.identity import Lookup, look_up
from flagscale.runners.slurm.ledger import Ledger
from flagscale.runners.slurm.outcome import begin_end_text, outcome
from flagscale.runners.slurm.reasons import clock
from flagscale.values import Host, LaunchPlan

_FRESH = 2.0
"""Seconds for which an answer of Slurm is used again: a command that watches a job asks no more often."""
_LAST_LINES = 5
_TAIL_BYTES = 4096


def report(plan: LaunchPlan, count: bool) -> RunReport:
    """Return the state of a run. Its processes are not counted, because that would take a session per host.

    Raises:
        FlagScaleError: the record of the job, or the plan, cannot be read.
    """
    run_dir = RunDir(Path(plan.exp_dir))
    known = ledger.read(run_dir)
    if known is None:
        reason = "it was not submitted to Slurm, or the submission was interrupted"
        return RunReport(plan, [HostStatus(host, None) for host in plan.hosts], "failed", reason)
    # Before the states: if a job is over by then, its hosts have written their last ones.
    answer = _recent_answer(known)
    # A job writes its plan, which names its hosts, when it begins.
    current = run_dir.read_plan() or plan
    now = time.time()
    found = outcome(known, answer, newest_states(run_dir, current, known), now)
    notes = [*_job_notes(answer, now), *_begin_notes(known, now)]
    if found.phase == "failed":
        notes += [f"{run_dir.slurm_output}: {line}" for line in _last_lines(run_dir.slurm_output)]
    return RunReport(current, found.hosts, found.phase, found.reason, notes, queue_json(known, answer, now))


_answers: dict[str, tuple[float, Lookup]] = {}
"""By job id: when the last answer came, by the monotonic clock, and the answer."""


def _recent_answer(known: Ledger) -> Lookup:
    if known.job_id in _answers:
        when, answer = _answers[known.job_id]
        if time.monotonic() - when < _FRESH:
            return answer
    answer = look_up(known)
    _answers[known.job_id] = time.monotonic(), answer
    return answer


def newest_states(run_dir: RunDir, plan: LaunchPlan, known: Ledger) -> list[HostStatus]:
    """Return what each host has recorded since the job began for the last time.

    A begin is recorded before its plan is: until then, plan and states are those of an earlier begin.
    """
    newest = known.own_begins[-1] if known.own_begins else None
    if newest and newest.run_id != plan.run_id:
        return [HostStatus(host, None) for host in plan.hosts]
    return host_states(run_dir, plan)


def host_states(run_dir: RunDir, plan: LaunchPlan) -> list[HostStatus]:
    """Return what each host of a plan has recorded."""

    def of_host(host: Host) -> HostStatus:
        try:
            return HostStatus(host, read_state(run_dir.state(host), plan.run_id))
        except FlagScaleError as error:
            return HostStatus(host, None, trouble=str(error))

    return list(map(of_host, plan.hosts))


def _job_notes(answer: Lookup, now: float) -> Iterator[str]:
    """Yield what Slurm says of the job besides its reason: the time that it waits or has left."""
    record = answer.record
    if record is None or record.is_over:
        return
    where = f"job {record.job_id} of Slurm, partition {record.partition}"
    if record.is_waiting and record.eligible and record.eligible > now:
        yield f"{where}: it waits for at least {duration(record.eligible - now)}"
    elif record.is_waiting:
        yield where
    elif record.time_limit and record.end:
        yield f"{where}: {duration(max(0.0, record.end - now))} left of {duration(record.time_limit)}"
    else:
        yield f"{where}: no time limit"


def _begin_notes(known: Ledger, now: float) -> Iterator[str]:
    """Yield the earlier begins of this job and of the jobs before it."""
    for begin in known.begins[:-1]:
        hosts = ",".join(begin.hosts)
        yield f"job {begin.job_id} on {hosts} from {clock(begin.began, now)}: {begin_end_text(begin, now)}"


def _last_lines(path: Path) -> list[str]:
    """Return the last lines of what the job's script has printed; none if it has printed nothing."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-_LAST_LINES:]


def queue_json(known: Ledger, answer: Lookup, now: float) -> dict[str, Any]:
    """Return the facts about the job for programs, as plain JSON values; times in seconds since the epoch."""
    record = answer.record
    is_active = record is not None and not record.is_over and not record.is_waiting
    return {
        "system": "slurm",
        "cluster": known.cluster,
        "job_id": known.job_id,
        "components": list(known.components),
        "is_ours": known.is_ours,
        "trouble": answer.trouble,
        "state": record.state if record else None,
        "reason": record.reason if record else None,
        "partition": record.partition if record else None,
        "submitted": record.submit if record else known.submitted,
        "can_begin": record.eligible if record else None,
        "begin": record.start if record else None,
        "end": record.end if record else None,
        "seconds_left": max(0.0, record.end - now) if record and is_active and record.end else None,
        "restarts": record.restarts if record else None,
        "excluded": list(known.excluded),
        "stop_requested": known.stop_requested,
        "begins": [asdict(begin) for begin in known.begins],
    }
