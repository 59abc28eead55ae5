"""The status of a job, derived from its hosts' states, its metrics and its services; also as JSON."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import isfinite
from typing import Any, Literal

from flagscale.remote.launcher import HostStatus
from flagscale.run.failure import Failure
from flagscale.run.state import Attempt
from flagscale.runners.base import QueuePhase
from flagscale.status.progress import Progress
from flagscale.status.services import (
    HostedService,
    endpoints,
    first_of_lost,
    has_services,
    phase_of_running,
    programs_json,
)
from flagscale.values import LaunchPlan

JobPhase = Literal["queued", "starting", "running", "stopping", "finished", "failed", "stopped", "unknown"]


@dataclass(frozen=True)
class JobStatus:
    """The status of a whole job at one time, derived from its hosts' states."""

    plan: LaunchPlan
    phase: JobPhase
    hosts: tuple[HostStatus, ...]
    progress: Progress | None
    failure: tuple[str, Failure] | None
    """The name of the host, and the cause, of the first failure."""
    services: tuple[HostedService, ...] = ()
    is_given_up: bool = False
    """Whether hosts that cannot be asked are no longer waited for."""
    queue_phase: QueuePhase | None = None
    """The phase of the job in the runner's queue; None: it follows from the states of its hosts."""
    reason: str = ""
    """The reason for the phase in the queue."""
    notes: Sequence[str] = ()
    """More about the job in the queue, for people."""
    queue: Mapping[str, Any] = field(default_factory=dict)
    """The same for programs."""
    own_progress: Mapping[int, Progress] = field(default_factory=dict)
    """By host rank, if each host runs a job of its own; `progress` is then that of the slowest."""

    @cached_property
    def members(self) -> frozenset[int]:
        """The ranks of the hosts that the job runs on: a restart may have left some out."""
        return frozenset(host.host.rank for host in taking_part(self.hosts))

    @property
    def exit_code(self) -> int:
        failing = self.failure is not None and self.phase != "stopped"
        return 1 if failing or self.phase in ("failed", "unknown") else 0

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to wait for."""
        if self.queue_phase:
            return self.queue_phase in ("stopped", "failed")
        return self.is_given_up or all(host.ended for host in taking_part(self.hosts))

    @property
    def is_lost(self) -> bool:
        """Whether the job has ended on some host, and all hosts that have not ended cannot be asked.

        Hosts that each run a service to its end may continue when one of them has finished, and hosts with a
        job of their own in any case.
        """
        if self.plan.has_own_jobs:
            return False
        hosts = taking_part(self.hosts)
        over = ("failed", "stopped", *(() if has_services(self.plan) else ("finished",)))
        is_over = any(host.state and host.state.phase in over for host in hosts)
        return is_over and all(host.ended or host.trouble for host in hosts)


def job_status(
    plan: LaunchPlan,
    hosts: Sequence[HostStatus],
    progress: Progress | None,
    services: Sequence[HostedService] = (),
    queue_phase: QueuePhase | None = None,
    reason: str = "",
) -> JobStatus:
    """Return the status of the job: failed if one host failed, else running while one host is running.

    Servers count as running once all of them have answered. A phase from the runner's queue takes precedence.
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
    lost = first_of_lost(services) if phase == "failed" else None
    first = failures[_cause([failure for _, failure in failures])] if failures else None
    return JobStatus(
        plan=plan,
        phase=queue_phase or (phase_of_running(plan, services) if phase == "running" else phase),
        hosts=tuple(hosts),
        progress=progress,
        failure=lost or first,
        services=tuple(services),
        queue_phase=queue_phase,
        reason=reason,
    )


def taking_part(hosts: Sequence[HostStatus]) -> list[HostStatus]:
    """Return the hosts that the job runs on: a restart may have left some out, as the first host reports."""
    members = frozenset(next((host.state.members for host in hosts if host.state and host.state.members), ()))
    return [host for host in hosts if not members or host.host.rank in members]


def _cause(failures: Sequence[Failure]) -> int:
    """Return the index of the first failure among those that the hosts report.

    Failures caused elsewhere come last, and a rank's failure comes before its agent's. If hosts have lost
    each other, the message that most of them report comes first: the one host that is cut off may still be
    alive, and reports that it lost the others. Ties are resolved by time.
    """
    votes = Counter(failure.message for failure in failures if failure.is_victim)

    def order(number: int) -> tuple[bool, bool, int, float]:
        failure = failures[number]
        return failure.is_victim, failure.rank is None, -votes[failure.message], failure.time

    return min(range(len(failures)), key=order)


def failed_attempts(status: JobStatus) -> list[tuple[str, Attempt]]:
    """Return the attempts before the current one, each as reported by the host on which it failed first."""
    reported: dict[int, list[tuple[str, Attempt]]] = defaultdict(list)
    for host in status.hosts:
        for attempt in host.state.attempts if host.state else ():
            reported[attempt.number].append((host.host.name, attempt))
    attempts = [reported[number] for number in sorted(reported)]
    return [one[_cause([attempt.failure for _, attempt in one])] for one in attempts]


def status_json(status: JobStatus) -> dict[str, Any]:
    """Return the status for programs, as plain JSON values."""
    name, failure = status.failure or ("", None)
    return {
        "state": status.phase,
        "reason": status.reason,
        **({"queue": dict(status.queue)} if status.queue else {}),
        "name": status.plan.name,
        "run_id": status.plan.run_id,
        "exp_dir": status.plan.exp_dir,
        "metrics": _finite(status.progress.record) if status.progress else None,
        "seconds_left": status.progress.seconds_left if status.progress else None,
        "evaluations": _evaluations(status.progress),
        "failure": {"host": name, **asdict(failure)} if failure else None,
        "attempts": [{"host": host, **asdict(attempt)} for host, attempt in failed_attempts(status)],
        # The name is as in 0.1, because programs read it.
        "programs": programs_json(status.services),
        "endpoints": [endpoint.to_json() for endpoint in endpoints(status.services)],
        "hosts": [
            {
                "rank": host.host.rank,
                "name": host.host.name,
                "state": phase_of(status, host),
                "processes": host.processes,
                "trouble": host.trouble,
                **_own_metrics(status, host),
            }
            for host in status.hosts
        ],
    }


def _own_metrics(status: JobStatus, host: HostStatus) -> dict[str, Any]:
    """Return the newest metrics of a host that runs a job of its own."""
    own = status.own_progress.get(host.host.rank)
    return {"metrics": _finite(own.record)} if own else {}


def _evaluations(progress: Progress | None) -> dict[str, dict[str, Any]]:
    evaluations = progress.evaluations if progress else {}
    return {key: _finite(asdict(one)) for key, one in evaluations.items()}


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record without NaN and infinity, such as a diverged loss, which JSON cannot represent."""
    return {
        key: None if isinstance(value, float) and not isfinite(value) else value
        for key, value in record.items()
    }


def phase_of(status: JobStatus, host: HostStatus) -> str:
    """Return the phase of one host of the job."""
    if host.host.rank not in status.members:
        return "left out"
    return host.state.phase if host.state else status.queue_phase or "unknown"
