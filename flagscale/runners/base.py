"""The contract of a runner: it provides the hosts of a job, starts or submits it, reports on it, ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from flagscale import registry
from flagscale.plan.render import scripts
from flagscale.plan.runner import RunnerRules
from flagscale.remote import hosts, launcher
from flagscale.remote.launcher import HostStatus, OnProgress
from flagscale.run.rundir import RunDir
from flagscale.run.state import Reply
from flagscale.values import Host, LaunchPlan, NodeCommand

# The functions below import what only a start needs: `query` and `stop` would wait as long for it as for the
# rest of their work (docs/benchmarks.md).
if TYPE_CHECKING:
    from flagscale.plan.prepare import Prepared
    from flagscale.remote.preflight import CheckResult

QueuePhase = Literal["queued", "starting", "stopping", "stopped", "failed"]


@dataclass(frozen=True)
class RunReport:
    """What a runner reports about a run."""

    plan: LaunchPlan
    """The plan as known now: a queue may choose the hosts when the job's turn comes."""
    hosts: Sequence[HostStatus]
    phase: QueuePhase | None = None
    """The phase of the job in the runner's queue; None: the phase follows from the states of its hosts."""
    reason: str = ""
    """Why it is in this phase: what it is waiting for, who cancelled it, or why it could not start."""
    notes: Sequence[str] = ()
    """More about the job in the queue for people: the time that is left, how it ended before."""
    queue: Mapping[str, Any] = field(default_factory=dict)
    """The same for programs, as plain JSON values."""

    @property
    def is_in_queue(self) -> bool:
        """Whether the runner keeps the job, so that more is to come whatever its hosts have recorded."""
        return self.phase in ("queued", "starting", "stopping")


def check_hosts(prepared: Prepared) -> list[CheckResult]:
    """Check everything that the job needs on every host of the plan."""
    from flagscale.remote.preflight import preflight

    return preflight(prepared.experiment, prepared.job, prepared.plan, prepared.engine.distributions)


def require_hosts(prepared: Prepared) -> LaunchPlan:
    """Return the plan with the addresses that its hosts report. Raises HostError if a host is not ready."""
    from flagscale.remote.preflight import require_ready

    if any(service.url for services in prepared.job.services.values() for service in services):
        # Otherwise the servers of an earlier job would be reported as unknown processes that use the ports.
        launcher.refuse_if_running(RunDir(Path(prepared.plan.exp_dir)), prepared.plan, earlier_job)
    rendezvous = require_ready(
        prepared.experiment, prepared.job, prepared.plan, prepared.engine.distributions
    )
    return prepared.plan_at(rendezvous)


def start_now(prepared: Prepared, plan: LaunchPlan, done: OnProgress | None) -> str:
    """Start the plan on all of its hosts, or on none of them."""
    from flagscale.plan.placement import secrets

    launcher.start(plan, prepared.config, secrets(prepared.job, prepared.experiment), done, earlier_job)
    return ""


def ask_hosts(plan: LaunchPlan, count: bool) -> RunReport:
    """Report the states of the plan's hosts."""
    return RunReport(plan, launcher.status(plan, count=count))


def stop_hosts(plan: LaunchPlan) -> Mapping[Host, Reply]:
    """End the run on every host of the plan."""
    return launcher.stop(plan)


class Logs(Protocol):
    """Reads the files of a run, wherever its hosts keep them; both methods raise FlagScaleError if a host
    cannot be asked. `flagscale.remote.hosts` implements it.
    """

    def read(
        self, plan: LaunchPlan, node: NodeCommand, name: str, position: int, size: int
    ) -> tuple[bytes, int]:
        """Return a piece of a host's `output`, `metrics` or `services`, and the size of the whole file."""
        ...

    def begin_of_run(self, plan: LaunchPlan, node: NodeCommand) -> int | None:
        """Return the position at which this run begins in a host's `output`; None if it has not begun."""
        ...


@dataclass(frozen=True)
class JobRunner:
    """A way to run jobs (entry points: `flagscale.runners`), named by `experiment.runner.type`.

    `rules` make decisions without side effects; the other fields act. By default they act on the hosts of the
    plan, from here and immediately. A batch system replaces `start` (submit: see `recorded`), `report` and
    `stop`.
    """

    rules: RunnerRules
    check: Callable[[Prepared], list[CheckResult]] = check_hosts
    """Return the result of every check that `action=check` performs."""
    require: Callable[[Prepared], LaunchPlan] = require_hosts
    """Return the plan to start, after the checks that every start requires. Raises HostError if one fails."""
    start: Callable[[Prepared, LaunchPlan, OnProgress | None], str] = start_now
    """Start or submit the plan; return a line for the user, or "". Raises FlagScaleError if that fails."""
    report: Callable[[LaunchPlan, bool], RunReport] = ask_hosts
    """Return the state of a run, with the number of living processes if asked to count. It never waits."""
    stop: Callable[[LaunchPlan], Mapping[Host, Reply]] = stop_hosts
    """End or cancel a run, whatever its state; return a reply per host that says whether this succeeded. Safe
    to repeat."""
    logs: Logs = hosts

    @property
    def name(self) -> str:
        """Its registered name."""
        return self.rules.name


def runner_of(plan: LaunchPlan) -> JobRunner:
    """Return the runner that started a plan. Raises UserError if it is no longer installed."""
    runner: JobRunner = registry.load("runners", plan.runner, str(RunDir(Path(plan.exp_dir)).plan))
    return runner


def all_scripts(plan: LaunchPlan) -> dict[Path, str]:
    """Return every script of a plan by path: those of its hosts and those of its runner."""
    return {**scripts(plan), **runner_of(plan).rules.scripts(plan)}


def earlier_job(plan: LaunchPlan) -> tuple[str, Sequence[HostStatus]]:
    """Return in which phase, and why, a job is in its runner's queue ("": it is not), and the states of its
    hosts.
    """
    report = runner_of(plan).report(plan, True)
    kept = f"{report.phase} ({report.reason or 'its turn'})" if report.is_in_queue else ""
    return kept, report.hosts


@contextmanager
def recorded(prepared: Prepared, plan: LaunchPlan) -> Iterator[None]:
    """Hold the run directory, with the plan and all its scripts recorded, while a job is being submitted.

    Raises:
        FlagScaleError: a job is still running or queued there, or another command is starting one.
    """
    from flagscale.plan.placement import secrets

    hidden = secrets(prepared.job, prepared.experiment)
    with launcher.recorded(plan, all_scripts(plan), prepared.config, hidden, earlier_job):
        yield
