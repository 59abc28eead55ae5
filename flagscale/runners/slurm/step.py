"""The step of a run inside an allocation: one task per host, which supervises the run there."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flagscale.errors import FlagScaleError
from flagscale.node.start import outcome, reply_of
from flagscale.remote.hosts import longest_grace
from flagscale.remote.launcher import OnProgress
from flagscale.remote.report import host_error
from flagscale.run.env import HOST_RANK, RUN_ID
from flagscale.run.rundir import RunDir
from flagscale.run.state import ENDED, HostState, Reply, read_state
from flagscale.runners.slurm.allocation import Allocation
from flagscale.runners.slurm.commands import SlurmError, SlurmRefused, call, own_words
from flagscale.runners.slurm.srun import srun
from flagscale.values import Host, LaunchPlan

_POLL = 0.1
_MARGIN = 10.0
"""Seconds beyond `start_timeout` for the supervisors of several hosts, which report the missing host."""
_ENDING = 30.0
"""Seconds beyond the grace of the ranks that the supervisors may take to end them and to report that."""
_TAIL = 4096


@dataclass(frozen=True)
class Step:
    """The step that runs a plan: the client `srun` lives as long as its tasks."""

    client: subprocess.Popen[bytes]
    job_id: str
    output: Path
    """What srun prints; earlier steps of the run directory have printed to the same file."""
    begin: int
    """Where this step's part of `output` begins, in bytes."""

    def poll(self) -> int | None:
        """Return the exit code of srun, the highest of its tasks; None while it runs."""
        return self.client.poll()

    def printed(self) -> str:
        """Return the last of what srun has printed, on one line."""
        with self.output.open("rb") as file:
            file.seek(max(self.begin, self.output.stat().st_size - _TAIL))
            return own_words(file.read().decode(errors="replace"))


def start_step(plan: LaunchPlan, allocation: Allocation) -> Step:
    """Start the recorded plan by one task per host, each of which becomes the supervisor of its host.

    Raises:
        SlurmMissing: srun cannot be run here.
    """
    tags = f'{RUN_ID}="$1" {HOST_RANK}="$SLURM_NODEID"'
    # With the tags from its first moment on, a supervisor is recognized as part of the run.
    shell = f'exec env {tags} "$2" -m flagscale.node task "$3" "$SLURM_NODEID" "$1"'
    words = ["sh", "-c", shell, "sh", plan.run_id, plan.python, plan.exp_dir]
    path = RunDir(Path(plan.exp_dir)).slurm_output
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as output:
        begin = output.tell()
        client = srun(plan, allocation, plan.run_id, words, output)
    return Step(client, allocation.job_id, path, begin)


def wait_started(plan: LaunchPlan, step: Step, done: OnProgress | None = None) -> None:
    """Wait until every host of a step runs its share of the plan; if one does not, the step is ended.

    Raises:
        HostError: hosts could not start; the others were stopped again.
        FlagScaleError: Slurm could not start the step, or the job was stopped meanwhile.
    """
    try:
        replies = _replies(plan, step, done)
    except BaseException:  # also Ctrl-C: the whole job runs, or no part of it
        _take_back(plan, step)
        raise
    if all(reply["ok"] for reply in replies.values()) and len(replies) == len(plan.hosts):
        return
    _take_back(plan, step)
    replies = {host: reply for host in plan.hosts if (reply := _reply(plan, host))}
    failed = [
        (host, reply["message"])
        for host, reply in replies.items()
        if not (reply["ok"] or reply.get("stopped"))
    ]
    said = step.printed()
    if failed:
        raise host_error("the job did not start; hosts that had started were stopped again:", failed)
    if any(reply.get("stopped") for reply in replies.values()) and step.client.returncode == 0 and not said:
        raise FlagScaleError("the job did not start: it was stopped by another command meanwhile")
    missing = ", ".join(host.name for host in plan.hosts if host not in replies) or "every host"
    what = f"the job did not start within {plan.start_timeout:g} s on {missing}"
    raise FlagScaleError(f"{what}; srun: {said or 'it printed nothing'} ({step.output})")


def _replies(plan: LaunchPlan, step: Step, done: OnProgress | None) -> dict[Host, Reply]:
    """Return the replies of all hosts; fewer if one has failed, the step has ended, or the time is over."""
    deadline = time.monotonic() + plan.start_timeout + _MARGIN
    replies: dict[Host, Reply] = {}
    while True:
        has_ended = step.poll() is not None  # before the states: what they say now is final
        for host in plan.hosts:
            if host not in replies and (reply := _reply(plan, host)):
                replies[host] = reply
                if done:
                    done(len(replies), len(plan.hosts))
        if len(replies) == len(plan.hosts) or not all(reply["ok"] for reply in replies.values()):
            return replies
        if has_ended or time.monotonic() > deadline:
            return replies
        time.sleep(_POLL)


def _reply(plan: LaunchPlan, host: Host) -> Reply | None:
    """Return the reply to a start that follows from what a host has recorded; None while that is open."""
    state = _state(plan, host)
    return reply_of(state) if state else None


def _state(plan: LaunchPlan, host: Host) -> HostState | None:
    return read_state(RunDir(Path(plan.exp_dir)).state(host), plan.run_id)


def _take_back(plan: LaunchPlan, step: Step) -> None:
    """End a step that did not start completely: the supervisors end their hosts, then Slurm ends the rest."""
    for end, seconds in ((end_step, longest_grace(plan) + _ENDING), (kill_step, _ENDING)):
        # The step may not exist yet, or Slurm may not answer.
        with suppress(SlurmError, subprocess.TimeoutExpired):
            if step.poll() is None and end(step.job_id, plan.run_id):
                step.client.wait(seconds)
    if step.poll() is None:
        step.client.terminate()  # it ends the step that it has started, or no longer asks for one
        step.client.wait()
    for host in plan.hosts:
        state = _state(plan, host)
        if state and state.phase not in ENDED:
            outcome(plan, plan.node(host.rank), "its supervisor was ended before it could report that")


def end_step(job_id: str, name: str) -> bool:
    """Ask the supervisors of a step, which has the name of its run, to end their hosts.

    Returns whether there is such a step. Raises SlurmError if Slurm did not do that.
    """
    return _signal_steps(job_id, name, "--signal=TERM")


def kill_step(job_id: str, name: str) -> bool:
    """End every process of a step at once; the rest as `end_step`."""
    return _signal_steps(job_id, name)


def _signal_steps(job_id: str, name: str, *options: str) -> bool:
    steps = find_steps(job_id, name)
    for step in steps:
        try:
            call("scancel", *options, step)
        except SlurmRefused as refused:
            # Said of a step that has ended meanwhile, but also after a signal has reached one that does not
            # run on all hosts of its job (22.05).
            if "Invalid job id" not in refused.words:
                raise
    return bool(steps)


def find_steps(job_id: str, name: str) -> list[str]:
    """Return the ids of a job's running steps with a name; a heterogeneous job has one per component.

    Raises:
        SlurmError: Slurm does not answer.
    """
    printed = call("squeue", "--steps", f"--jobs={job_id}", "--noheader", "--format=%i %j")
    lines = [line.strip().split(maxsplit=1) for line in printed.splitlines()]
    return [words[0] for words in lines if words[1:] == [name]]
