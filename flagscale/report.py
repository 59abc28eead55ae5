"""What the commands tell: a plan, and the status of a run, for people and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from flagscale.job import LaunchPlan
from flagscale.launch.launcher import HostStatus
from flagscale.launch.render import scripts
from flagscale.launch.rundir import RunDir
from flagscale.node.state import Failure
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

    @property
    def exit_code(self) -> int:
        failing = self.failure is not None and self.phase != "stopped"
        return 1 if failing or self.phase in ("failed", "unknown") else 0

    @property
    def ended(self) -> bool:
        """Whether no host has anything left to wait for."""
        return all(host.ended for host in self.hosts)


def job_status(plan: LaunchPlan, hosts: Sequence[HostStatus], progress: Progress | None) -> JobStatus:
    """Sum up the hosts: the job fails with its first host, runs while one runs, and is well when all are."""
    phases = Counter(host.state.phase if host.state else "unknown" for host in hosts)
    order: tuple[JobPhase, ...] = (
        "failed",
        "unknown",
        "stopping",
        "starting",
        "running",
        "stopped",
        "finished",
    )
    failures = [(host.host.name, host.state.failure) for host in hosts if host.state and host.state.failure]
    # A rank's failure comes before what it did to others; among those the earliest counts.
    failures.sort(key=lambda failure: (failure[1].rank is None, failure[1].time))
    return JobStatus(
        plan=plan,
        phase=next(phase for phase in order if phases[phase]),
        hosts=tuple(hosts),
        progress=progress,
        failure=failures[0] if failures else None,
    )


def plan_text(plan: LaunchPlan, config: str) -> str:
    """Return everything that `run` would do: the resolved configuration, the scripts, the commands."""
    run_dir = _run_dir(plan)
    lines = [f"{plan.name}: {plan.world_size} ranks on {_count(len(plan.nodes), 'host')}, {plan.layout}"]
    lines += [
        f"  host {node.host.rank}  {node.host.name}  {node.host.slots} ranks  {node.host.platform}"
        for node in plan.nodes
    ]
    lines += ["", f"# {run_dir.config}", config.rstrip("\n")]
    for path, text in scripts(plan).items():
        lines += ["", f"# {path}", text.rstrip("\n")]
    return "\n".join(lines)


def started_text(plan: LaunchPlan) -> str:
    """Return where a started job is and what to type next."""
    run_dir = _run_dir(plan)
    hosts = _count(len(plan.nodes), "host")
    return "\n".join(
        [
            f"{plan.name}: {plan.world_size} ranks on {hosts} ({plan.layout}), run {plan.run_id}",
            f"  logs         {run_dir.logs}",
            f"  metrics      {run_dir.metrics}",
            f"  checkpoints  {run_dir.checkpoints}",
            "  the same command with action=query, logs or stop looks after it",
        ]
    )


def status_text(status: JobStatus) -> str:
    """Return the status of a job for people."""
    plan = status.plan
    lines = [
        f"{plan.name}: {status.phase}  "
        f"({plan.world_size} ranks on {_count(len(plan.nodes), 'host')}, {plan.layout}, run {plan.run_id})"
    ]
    if status.progress:
        lines.append(f"  {progress_text(status.progress)}")
    for host in status.hosts:
        phase = host.state.phase if host.state else "unknown"
        living = f"  {_count(host.processes, 'process')}" if host.processes else ""
        trouble = host.trouble or ("" if host.state else "nothing was started here yet")
        lines.append(f"  host {host.host.rank}  {host.host.name}  {phase}{living}  {trouble}".rstrip())
    if status.failure:
        lines += failure_lines(status)
    return "\n".join(lines)


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
        lines.append(f"  log of the rank: {failure.log}")
    return [*lines, f"  log of the host: {_run_dir(status.plan).output(host)}"]


def status_json(status: JobStatus) -> dict[str, Any]:
    """Return the status for programs."""
    name, failure = status.failure or ("", None)
    return {
        "state": status.phase,
        "name": status.plan.name,
        "run_id": status.plan.run_id,
        "exp_dir": status.plan.exp_dir,
        "metrics": _finite(status.progress.record) if status.progress else None,
        "seconds_left": status.progress.seconds_left if status.progress else None,
        "failure": {"host": name, **asdict(failure)} if failure else None,
        "hosts": [
            {
                "rank": host.host.rank,
                "name": host.host.name,
                "state": host.state.phase if host.state else "unknown",
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


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def _run_dir(plan: LaunchPlan) -> RunDir:
    return RunDir(Path(plan.exp_dir))
