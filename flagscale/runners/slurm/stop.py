"""Stop a run: cancel its job in the queue, or end its step and then, if the job is ours, the job.

The supervisors get TERM through Slurm, end their processes as always, and record it. Only what they cannot do
is done from here. A stop ends with a check: Slurm's word that the job is over, and each host's own word.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from flagscale.frozen import dataclass
from flagscale.remote.hosts import longest_grace, run_command
from flagscale.remote.launcher import HostStatus
from flagscale.run.rundir import RunDir
from flagscale.run.state import Reply
from flagscale.runners.slurm import ledger
from flagscale.runners.slurm.allocation import parse_allocation
from flagscale.runners.slurm.commands import SlurmError, SlurmRefused, call
from flagscale.runners.slurm.identity import Lookup, look_up
from flagscale.runners.slurm.ledger import Ledger
from flagscale.runners.slurm.questions import ask_step
from flagscale.runners.slurm.records import JobRecord
from flagscale.runners.slurm.report import newest_states
from flagscale.runners.slurm.step import end_step, find_steps, kill_step
from flagscale.values import Host, LaunchPlan

_SLACK = 15.0
"""Seconds beyond the grace of the ranks in which supervisors end."""
_BY_ITSELF = 5.0
"""Seconds in which a job whose step has ended may end by itself, before it is cancelled."""
_CANCELLED = 90.0
"""Seconds for Slurm to end a job that was cancelled: `KillWait`, usually 30, and its own rounds."""
_PAUSE = 0.25


@dataclass(frozen=True)
class _Run:
    """What is to be stopped."""

    run_dir: RunDir
    known: Ledger
    asked: LaunchPlan

    @property
    def plan(self) -> LaunchPlan:
        """The plan as it is now: the job writes it, with its hosts, when it begins."""
        return self.run_dir.read_plan() or self.asked

    def states(self) -> list[HostStatus]:
        return newest_states(self.run_dir, self.plan, ledger.read(self.run_dir) or self.known)

    def running(self) -> list[Host]:
        """Return the hosts that have not recorded the end of their parts."""
        return [one.host for one in self.states() if not (one.state and one.ended)]


def stop(plan: LaunchPlan) -> Mapping[Host, Reply]:
    """End or cancel a run, whatever its state; a reply per host says what happened. Safe to repeat.

    Raises:
        FlagScaleError: the record of the job, or the plan, cannot be read.
    """
    run_dir = RunDir(Path(plan.exp_dir))
    known = ledger.read(run_dir)
    if known is None:
        _forget_secrets(run_dir, plan)
        return dict.fromkeys(plan.hosts, _reply("nothing was submitted to Slurm"))
    run = _Run(run_dir, known, plan)
    before = run.states()
    found = look_up(known)
    was_active, trouble = is_active(found), found.trouble
    was_waiting = found.record is not None and found.record.is_waiting
    if was_active or trouble:
        with suppress(OSError):  # a full disk must not prevent a stop
            ledger.request_stop(run_dir, known.job_id)
    if found.record and was_active:
        try:
            found = _end(run, found.record)
            trouble = found.trouble
        except SlurmError as error:
            trouble = str(error)
    if trouble:
        what = f"not stopped: {trouble}; repeat action=stop when Slurm answers"
        return _replies(before, run.states(), _reply(what, ok=False))
    if is_active(found) and known.is_ours:
        what = f"job {known.job_id} is still {found.record.state.lower()} in Slurm" if found.record else ""
        return dict.fromkeys(run.plan.hosts, _reply(f"not stopped within {_CANCELLED:g} s: {what}", ok=False))
    _forget_secrets(run_dir, run.plan)
    if was_waiting and known.is_ours:  # also between two begins, the first of which has left states
        return dict.fromkeys(run.plan.hosts, _reply("cancelled", ended=True))
    return _replies(before, run.states(), _of_silent(run, found, was_active))


def _of_silent(run: _Run, found: Lookup, was_active: bool) -> Reply:
    """Return the reply of a host that has recorded no end, although Slurm has nothing of the run any more."""
    known = run.known
    if not any(one.state for one in run.states()):
        return _reply("cancelled", ended=True) if was_active else _reply("nothing was running")
    said = f"Slurm no longer knows job {known.job_id}"
    if found.stranger:
        said += f" ({found.stranger.user}'s job {found.stranger.name} has its id now, and was not touched)"
    elif found.record:
        said = f"Slurm has ended its processes (job {known.job_id}: {found.record.state})"
    look = f"look there for processes with FLAGSCALE_RUN_ID={run.plan.run_id}"
    return _reply(f"its end is not certain: {said}, but its supervisor reported none; {look}", ok=False)


def _forget_secrets(run_dir: RunDir, plan: LaunchPlan) -> None:
    run_dir.forget_secrets(plan.hosts)
    run_dir.slurm_secrets.unlink(missing_ok=True)


def _reply(message: str, *, ok: bool = True, ended: bool = False) -> Reply:
    return {"ok": ok, "ended": ended, "message": message}


def is_active(found: Lookup) -> bool:
    """Return whether Slurm still has processes of a job, or may begin it."""
    return found.record is not None and not found.record.is_over


def _end(run: _Run, record: JobRecord) -> Lookup:
    """End what is active; return what Slurm says of the job afterwards. Raises SlurmError."""
    known = run.known
    if _has_step(known) and record.state != "SUSPENDED":  # a suspended process does not hear TERM
        _end_step(run)
    if not known.is_ours:
        _wait(lambda: not _has_step(known), _BY_ITSELF)
        if _has_step(known):
            kill_step(known.job_id, known.step)
            _wait(lambda: not _has_step(known), _CANCELLED)
        return look_up(known)
    if not record.is_waiting:
        _wait(lambda: not is_active(look_up(known)), _BY_ITSELF)
    found = look_up(known)
    if is_active(found):
        call("scancel", known.job_id)
        _wait(lambda: not is_active(look_up(known)), _CANCELLED)
        found = look_up(known)
    return found


def _has_step(known: Ledger) -> bool:
    """Return whether the run's step is active. Raises SlurmError if Slurm does not answer."""
    try:
        return bool(find_steps(known.job_id, known.step))
    except SlurmRefused:  # the job is over, and forgotten
        return False


def _end_step(run: _Run) -> None:
    """Let the supervisors end their parts; where one cannot, end its part by a process of the job there."""
    plan, known = run.plan, run.known
    grace = longest_grace(plan)
    if not plan.after_stop:
        end_step(known.job_id, known.step)
        _wait(lambda: not run.running(), grace + _SLACK)
    if run.running():  # also for lines to run after a stop, which need a process on each host
        here = parse_allocation(call("scontrol", "--details", "show", "job", known.job_id))
        questions = {host: run_command(plan, host, "stop") for host in plan.hosts}
        ask_step(plan, here, questions, 2 * (grace + _SLACK))


def _wait(is_true: Callable[[], bool], seconds: float) -> None:
    """Wait until a condition is true, or the time has passed."""
    deadline = time.monotonic() + seconds
    while not is_true() and time.monotonic() < deadline:
        time.sleep(_PAUSE)


def _replies(
    before: Collection[HostStatus], after: Collection[HostStatus], of_silent: Reply
) -> dict[Host, Reply]:
    """Return the replies of all hosts; `of_silent` is that of the hosts that have recorded no end."""
    had_ended = {one.host.rank for one in before if one.state and one.ended}
    replies: dict[Host, Reply] = {}
    for one in after:
        if not (one.state and one.ended):
            replies[one.host] = of_silent
        elif one.host.rank in had_ended:
            replies[one.host] = _reply("nothing was running")
        else:
            replies[one.host] = _reply("stopped", ended=True)
    return replies
