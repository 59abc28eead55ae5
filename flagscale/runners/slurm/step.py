"""Steps of Slurm inside an allocation: one task per host, which supervises a run or answers a question."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from typing import BinaryIO

from flagscale.errors import FlagScaleError
from flagscale.node.commands import QUESTIONS
from flagscale.node.start import outcome, reply_of
from flagscale.remote.hosts import longest_grace
from flagscale.remote.launcher import OnProgress
from flagscale.remote.report import host_error
from flagscale.run.env import HOST_RANK, RUN_ID, import_path
from flagscale.run.rundir import RunDir
from flagscale.run.state import ENDED, HostState, Reply, read_state
from flagscale.runners.slurm.allocation import Allocation
from flagscale.runners.slurm.commands import SlurmError, SlurmMissing, SlurmRefused, call, own_words
from flagscale.values import Host, LaunchPlan

_POLL = 0.1
_MARGIN = 10.0
"""Seconds beyond `start_timeout` for the supervisors of several hosts, which report the missing host."""
_ENDING = 30.0
"""Seconds beyond the grace of the ranks that the supervisors may take to end them and to report that."""
_ANSWERING = 60.0
"""Seconds that a step of questions may take, beyond the questions themselves."""
_TAIL = 4096
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")
"""The only variables of Slurm that a step inherits; the others repeat options of the job."""
_WHOLE_HOSTS = (
    "--quiet",
    "--ntasks-per-node=1",
    "--mem=0",
    "--cpu-bind=none",
    "--overlap",
    "--export=ALL",
    "--no-kill",
    "--kill-on-bad-exit=0",
    "--wait=0",
)
"""A task gets all that the job has on its host. If another task or host has failed, it runs on, because the
supervisors decide what happens then."""


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
        client = _srun(plan, allocation, plan.run_id, words, output)
    return Step(client, allocation.job_id, path, begin)


def _srun(
    plan: LaunchPlan, allocation: Allocation, name: str, words: Sequence[str], output: BinaryIO
) -> subprocess.Popen[bytes]:
    """Start srun, without a terminal and in a session of its own, so that Ctrl-C does not reach it."""
    options = [f"--jobid={allocation.job_id}", f"--job-name={name}", *_WHOLE_HOSTS]
    parts = [[*options, *where, *words] for where in _where(plan, allocation)]
    command = [word for part in parts for word in (":", *part)][1:]
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or not name.startswith(("SLURM", "SRUN_"))
    }
    if plan.source_root:
        environment["PYTHONPATH"] = import_path(plan.source_root, environment.get("PYTHONPATH", ""))
    try:
        return subprocess.Popen(
            ["srun", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise SlurmMissing(f"`srun` cannot be run: {error.strerror}") from None


def _where(plan: LaunchPlan, allocation: Allocation) -> Iterator[list[str]]:
    """Yield the options that say where a step runs, once per component of the allocation.

    Without numbers of its own, srun starts one task on each component. The tasks are numbered over all.
    """
    wanted = {host.name for host in plan.hosts}
    groups: dict[int, list[str]] = {}
    for host in allocation.hosts:
        if host.name in wanted:
            groups.setdefault(host.group, []).append(host.name)
    for group, names in groups.items():
        component = [f"--het-group={group}"] if allocation.components else []
        yield [*component, f"--nodes={len(names)}", f"--ntasks={len(names)}", f"--nodelist={','.join(names)}"]


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


def ask_step(
    plan: LaunchPlan, allocation: Allocation, questions: Mapping[Host, list[str]], seconds: float
) -> dict[Host, Reply]:
    """Perform one node command per host by a step, within so many seconds; return the replies.

    Questions and replies are files below the run directory, or below its next folder that exists, which the
    hosts must see.
    """
    existing = next(path for path in (Path(plan.exp_dir), *Path(plan.exp_dir).parents) if path.is_dir())
    with _folder(existing) as folder:
        words = {str(host.rank): command for host, command in questions.items()}
        (folder / QUESTIONS).write_text(json.dumps(words), encoding="utf-8")
        shell = 'exec "$1" -m flagscale.node answer "$2" "$SLURM_NODEID"'
        with (folder / "output").open("ab") as output:
            step = ["sh", "-c", shell, "sh", plan.python, str(folder)]
            client = _srun(plan, allocation, "flagscale-question", step, output)
        try:
            client.wait(_ANSWERING + seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if client.poll() is None:
                client.terminate()  # srun ends its tasks
                client.wait()
        said = own_words((folder / "output").read_text(encoding="utf-8", errors="replace"))[-_TAIL:]
        return {host: _answer(folder, host, said) for host in questions}


def _answer(folder: Path, host: Host, said: str) -> Reply:
    try:
        reply: Reply = json.loads((folder / f"{host.rank}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"ok": False, "message": f"it has not answered; srun: {said or 'it printed nothing'}"}
    return reply


@contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    """Make a folder that is removed at the end. Raises FlagScaleError if it cannot be made."""
    path = parent / f".flagscale-{token_hex(8)}"
    try:
        path.mkdir(mode=0o700)
    except OSError as error:
        raise RunDir(parent).unwritable(error) from None
    try:
        yield path
    finally:
        rmtree(path, ignore_errors=True)
