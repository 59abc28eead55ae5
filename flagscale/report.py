"""What the commands tell: a plan, and the status of a run, for people and as JSON."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from flagscale.job import LaunchPlan
from flagscale.launch.launcher import HostStatus
from flagscale.launch.render import scripts
from flagscale.launch.rundir import RunDir
from flagscale.node.state import Attempt, Failure
from flagscale.programs import Placed, has_programs, phase_of_running, program_lines, servers
from flagscale.progress import Progress, progress_text

JobPhase = Literal["starting", "running", "stopping", "finished", "failed", "stopped", "unknown"]


@dataclass(frozen=True)
class JobStatus:
    """One status of a whole job, made of its hosts' states."""

    plan: LaunchPlan
    phase: JobPhase
    hosts: tuple[HostStatus, ...]
    progress: Progress | None
    failure: tuple[str, Failure] | None
    """The host and the cause of the first failure."""
    programs: tuple[Placed, ...] = ()
    is_given_up: bool = False
    """Whether hosts that cannot be asked are waited for no more."""

    @property
    def exit_code(self) -> int:
        failing = self.failure is not None and self.phase != "stopped"
        return 1 if failing or self.phase in ("failed", "unknown") else 0

    @property
    def ended(self) -> bool:
        """Whether no host has anything left to wait for."""
        return self.is_given_up or all(host.ended for host in taking_part(self.hosts))

    @property
    def is_lost(self) -> bool:
        """Whether the job has ended on some host, and all that have not said so cannot be asked.

        Hosts that each run a program to its end may go on when one of them has finished.
        """
        hosts = taking_part(self.hosts)
        over = ("failed", "stopped", *(() if has_programs(self.plan) else ("finished",)))
        is_over = any(host.state and host.state.phase in over for host in hosts)
        return is_over and all(host.ended or host.trouble for host in hosts)


def job_status(
    plan: LaunchPlan,
    hosts: Sequence[HostStatus],
    progress: Progress | None,
    programs: Sequence[Placed] = (),
) -> JobStatus:
    """Sum up the hosts: the job fails with its first host, runs while one runs, and is well when all are.

    Servers run once all of them have answered.
    """
    counted = taking_part(hosts)
    phases = Counter(host.state.phase if host.state else "unknown" for host in counted)
    order: tuple[JobPhase, ...] = (
        "failed",
        "unknown",
        "stopping",
        "starting",
        "running",
        "stopped",
        "finished",
    )
    failures = [(host.host.name, host.state.failure) for host in counted if host.state and host.state.failure]
    phase = next(phase for phase in order if phases[phase])
    return JobStatus(
        plan=plan,
        phase=phase_of_running(plan, programs) if phase == "running" else phase,
        hosts=tuple(hosts),
        progress=progress,
        failure=failures[_cause([failure for _, failure in failures])] if failures else None,
        programs=tuple(programs),
    )


def taking_part(hosts: Sequence[HostStatus]) -> list[HostStatus]:
    """Return the hosts that the job runs on: a restart may have left some out, as the first host tells."""
    members = next((host.state.members for host in hosts if host.state and host.state.members), ())
    return [host for host in hosts if not members or host.host.rank in members]


def _cause(failures: Sequence[Failure]) -> int:
    """Return which of the failures that hosts tell is the first one.

    What was caused elsewhere comes last, and a rank's before its launcher's. Where hosts have lost each
    other, most of them name the one that is away: that one, which may still live, has lost the others. Then
    the earliest.
    """
    votes = Counter(failure.message for failure in failures if failure.is_victim)

    def order(number: int) -> tuple[bool, bool, int, float]:
        failure = failures[number]
        return failure.is_victim, failure.rank is None, -votes[failure.message], failure.time

    return min(range(len(failures)), key=order)


def plan_text(plan: LaunchPlan, config: str) -> str:
    """Return everything that `run` would do: the resolved configuration, the scripts, the commands."""
    run_dir = _run_dir(plan)
    lines = [f"{plan.name}: {_size(plan)} on {_hosts(plan)}, {plan.layout}"]
    for node in plan.nodes:
        slots = _count(node.host.slots, "slot" if node.programs else "rank")
        lines.append(f"  host {node.host.rank}  {node.host.name}  {slots}  {node.host.platform}")
        lines += [f"    {program.name}  {program.url}".rstrip() for program in node.programs]
    lines += ["", plan.picture] if plan.picture else []
    lines += ["", f"# {run_dir.config}", config.rstrip("\n")]
    for path, text in scripts(plan).items():
        lines += ["", f"# {path}", text.rstrip("\n")]
    return "\n".join(lines)


def started_text(plan: LaunchPlan) -> str:
    """Return where a started job is and what to type next."""
    run_dir, job_dir = _run_dir(plan), RunDir(Path(plan.job_dir or plan.exp_dir))
    hosts = _hosts(plan)
    lines = [
        f"{plan.name}: {_size(plan)} on {hosts} ({plan.layout}), run {plan.run_id}",
        f"  logs         {run_dir.logs}",
    ]
    if not has_programs(plan):
        lines += [f"  metrics      {job_dir.metrics}", f"  checkpoints  {job_dir.checkpoints}"]
    lines += [f"  {model}  {url}/v1" for model, url in servers(plan)]
    return "\n".join([*lines, "  the same command with action=query, logs or stop looks after it"])


def status_text(status: JobStatus) -> str:
    """Return the status of a job for people."""
    plan = status.plan
    lines = [
        f"{plan.name}: {status.phase}  ({_size(plan)} on {_hosts(plan)}, {plan.layout}, run {plan.run_id})"
    ]
    lines += [f"  {line}" for line in program_lines(status.programs)]
    if status.progress:
        lines.append(f"  {progress_text(status.progress)}")
    counted = taking_part(status.hosts)
    for host in status.hosts:
        phase = _phase(host, counted)
        living = f"  {_count(host.processes, 'process')}" if host.processes else ""
        unseen = "the run's plan is not to be seen here" if host.processes else "nothing was started here yet"
        trouble = host.trouble or ("" if host.state else unseen)
        lines.append(f"  host {host.host.rank}  {host.host.name}  {phase}{living}  {trouble}".rstrip())
    for number, (name, attempt) in enumerate(failed_attempts(status), start=1):
        ended = time.strftime("%H:%M:%S", time.localtime(attempt.ended))
        lines.append(f"  attempt {number} ended at {ended}: host {name}: {attempt.failure.message}")
    if status.failure:
        lines += failure_lines(status)
    return "\n".join(lines)


def _phase(host: HostStatus, counted: Sequence[HostStatus]) -> str:
    if host not in counted:
        return "left out"
    return host.state.phase if host.state else "unknown"


def failed_attempts(status: JobStatus) -> list[tuple[str, Attempt]]:
    """Return the attempts before the present one, each as the host tells it where it failed first."""
    told: dict[int, list[tuple[str, Attempt]]] = defaultdict(list)
    for host in status.hosts:
        for attempt in host.state.attempts if host.state else ():
            told[attempt.number].append((host.host.name, attempt))
    attempts = [told[number] for number in sorted(told)]
    return [one[_cause([attempt.failure for _, attempt in one])] for one in attempts]


def failure_lines(status: JobStatus) -> list[str]:
    """Return the first failure with its traceback and where the log is."""
    if status.failure is None:
        return []
    name, failure = status.failure
    rank = f", rank {failure.rank}" if failure.rank is not None else ""
    lines = [f"  first failure: host {name}{rank}: {failure.message}"]
    lines += [f"    {line}" for line in failure.traceback.rstrip().splitlines()]
    host = next(node.host for node in status.plan.nodes if node.host.name == name)
    if failure.log:
        whose = "program" if has_programs(status.plan) else "rank"
        lines.append(f"  log of the {whose}: {failure.log}")
    return [*lines, f"  log of the host: {_run_dir(status.plan).output(host)}"]


def status_json(status: JobStatus) -> dict[str, Any]:
    """Return the status for programs."""
    name, failure = status.failure or ("", None)
    counted = taking_part(status.hosts)
    return {
        "state": status.phase,
        "name": status.plan.name,
        "run_id": status.plan.run_id,
        "exp_dir": status.plan.exp_dir,
        "metrics": _finite(status.progress.record) if status.progress else None,
        "seconds_left": status.progress.seconds_left if status.progress else None,
        "failure": {"host": name, **asdict(failure)} if failure else None,
        "attempts": [{"host": host, **asdict(attempt)} for host, attempt in failed_attempts(status)],
        "programs": [{"host": host, **asdict(state)} for host, state in status.programs],
        "hosts": [
            {
                "rank": host.host.rank,
                "name": host.host.name,
                "state": _phase(host, counted),
                "processes": host.processes,
                "trouble": host.trouble,
            }
            for host in status.hosts
        ],
    }


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN, which a diverged loss is."""
    return {
        key: None if isinstance(value, float) and not isfinite(value) else value
        for key, value in record.items()
    }


def _hosts(plan: LaunchPlan) -> str:
    """`3 hosts`, or which of a platform's hosts this is."""
    if plan.job_dir:
        return f"the platform's hosts, this is host {plan.hosts[0].rank}"
    return _count(len(plan.nodes), "host")


def _size(plan: LaunchPlan) -> str:
    """`4 ranks`, or how many programs a job has that runs those."""
    programs = sum(len(node.programs) for node in plan.nodes)
    return _count(programs, "program") if programs else _count(plan.world_size, "rank")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def _run_dir(plan: LaunchPlan) -> RunDir:
    return RunDir(Path(plan.exp_dir))
