"""`runner.type: slurm`: inside an allocation it starts the job there; elsewhere it submits the job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flagscale.errors import Problem, UserError
from flagscale.formats import count
from flagscale.plan.hostfile import HostLine
from flagscale.plan.runner import LocalDevices, RunnerRules, Where
from flagscale.runners.base import JobRunner
from flagscale.runners.slurm.allocation import AllocatedHost, allocated_job, allocation
from flagscale.runners.slurm.report import report
from flagscale.runners.slurm.stop import stop
from flagscale.values import LaunchPlan

# The functions below import what only a start or a check needs: `query` would wait for it.
if TYPE_CHECKING:
    from flagscale.config.schema import Runner
    from flagscale.plan.prepare import Prepared
    from flagscale.remote.launcher import OnProgress
    from flagscale.remote.preflight import CheckResult

_REFUSED = {
    "no_shared_fs": "the hosts and this command meet in the run directory, which all of them must share",
    "host_paths": "the hosts and this command meet in the run directory, which all of them must share",
    "node_rank": "Slurm numbers the hosts",
    "per_node_task": "a job of Slurm is one job on all of its hosts; submit one job per host",
}
_BY_SLURM = "Slurm chooses the hosts"
_NO_SESSIONS = "Slurm starts the hosts"
_UNUSED = {
    "hostfile": _BY_SLURM,
    "include": _BY_SLURM,
    "exclude": f"{_BY_SLURM} (experiment.runner.slurm.exclude asks it to leave hosts out)",
    "transport": _NO_SESSIONS,
    "ssh_port": _NO_SESSIONS,
    "connect_timeout": _NO_SESSIONS,
}
"""A file that also serves `type: ssh` may have these keys."""


def unused(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return the keys that have no effect in this environment, and why."""
    if job_id := allocated_job(environ):
        return {**_UNUSED, "slurm": f"this command runs inside job {job_id}, which has its hosts"}
    return _UNUSED


def resolve(runner: Runner, environ: Mapping[str, str], where: Where) -> Runner:
    """Return the keys without those that have no effect, and with the chip of the hosts."""
    from flagscale.runners.slurm import keys

    fields = type(runner).model_fields
    given = {key: fields[key].get_default(call_default_factory=True) for key in _UNUSED}
    runner = runner.model_copy(update=given)
    here = allocation(environ)
    if here is None:
        return keys.checked(runner, where)
    if problems := list(keys.problems(runner, where)):
        raise UserError(problems)
    if runner.platform == "auto" and any(host.gpus for host in here.hosts) and (chip := keys.gpu_chip()):
        return runner.model_copy(update={"platform": chip})
    return runner


def hosts(runner: Runner, devices: LocalDevices, where: Where) -> tuple[HostLine, ...]:
    """Return the hosts of the allocation; placeholders if the job is to be submitted."""
    from flagscale.runners.slurm import keys

    here = allocation(os.environ)
    if here is None:
        return keys.planned_hosts(runner, devices, where)
    wanted, groups = runner.host_range(len(here.hosts))[1], runner.slurm.groups
    if wanted > len(here.hosts):
        what = f"nnodes is {wanted}, but job {here.job_id} of Slurm has {count(len(here.hosts), 'host')}"
        hint = f"use nnodes: {len(here.hosts)}, or remove the key"
        raise UserError([Problem(what, where("experiment.runner.nnodes"), hint)])
    lines = []
    for host in here.hosts:
        group = groups[host.group] if len(groups) == len(here.components) and groups else None
        given = group.nproc_per_node if group and group.nproc_per_node != "auto" else runner.nproc_per_node
        type_ = (group.type or "") if group else ""
        lines.append(HostLine(host.name, _slots(given, host, devices, where), type_))
    return tuple(lines)


def _slots(given: int | str, host: AllocatedHost, devices: LocalDevices, where: Where) -> int:
    """Return how many ranks a host has: as given, else one per GPU that Slurm gave, else one."""
    place = where("experiment.runner.nproc_per_node")
    if isinstance(given, int):
        if host.gpus and given > host.gpus and not devices.are_shared:
            what = f"nproc_per_node is {given}, but Slurm has given {count(host.gpus, 'GPU')} on {host.name}"
            raise UserError([Problem(what, place, f"use nproc_per_node: {host.gpus}")])
        return given
    if not host.gpus and not devices.are_shared:
        what = f"Slurm has given no GPUs on {host.name}, so it is not known how many ranks it has"
        raise UserError([Problem(what, place, "set the key, or ask for GPUs (salloc --gres=gpu:8)")])
    return host.gpus or 1


def scripts(plan: LaunchPlan) -> Mapping[Path, str]:
    """Return the batch script of a job that is to be submitted."""
    if allocated_job(os.environ):
        return {}
    from flagscale.runners.slurm import directives

    return directives.scripts(plan)


def check(prepared: Prepared) -> list[CheckResult]:
    """Return the result of every check that can be done from here."""
    if here := allocation(os.environ):
        from flagscale.runners.slurm.inside import check_inside

        return check_inside(prepared, here)
    from flagscale.runners.slurm.check import check as check_submission

    return check_submission(prepared)


def require(prepared: Prepared) -> LaunchPlan:
    """Return the plan to start or to submit. Raises FlagScaleError if it could not begin."""
    if here := allocation(os.environ):
        from flagscale.runners.slurm.inside import require_inside

        return require_inside(prepared, here)
    from flagscale.runners.slurm.check import require_possible

    return require_possible(prepared)


def start(prepared: Prepared, plan: LaunchPlan, done: OnProgress | None) -> str:
    """Start the plan inside the allocation, or submit it."""
    if here := allocation(os.environ):
        from flagscale.runners.slurm.inside import start_inside

        return start_inside(prepared, plan, here, done)
    from flagscale.runners.slurm.submit import submit

    return submit(prepared, plan, done)


SLURM = JobRunner(
    RunnerRules("slurm", hosts, refused=_REFUSED, unused=unused, resolve=resolve, scripts=scripts),
    check=check,
    require=require,
    start=start,
    report=report,
    stop=stop,
)
