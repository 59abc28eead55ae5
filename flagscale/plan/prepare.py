"""Turn a composed configuration into a plan, after all checks that this host can do; report all mistakes."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flagscale import platforms
from flagscale.config.command import Request
from flagscale.config.recorded import recorded_yaml
from flagscale.config.schema import Experiment
from flagscale.config.secrets import masks
from flagscale.config.source_map import SourceMap
from flagscale.engines.base import Engine
from flagscale.errors import Problem, UserError
from flagscale.plan.entrypoint import CLONE
from flagscale.plan.notices import setting_notices
from flagscale.plan.placement import build_plan, new_run_id
from flagscale.plan.stages import check_stages, hostfile_type
from flagscale.run.machine import this_machine
from flagscale.values import Job, LaunchPlan, Rendezvous

__all__ = ["Prepared", "Request", "prepare"]
"""What an action imports; `Request` lives where `query` finds it without the rest."""


@dataclass(frozen=True)
class Prepared:
    """A configuration that passed every check on this host."""

    experiment: Experiment
    engine: Engine
    job: Job
    plan: LaunchPlan
    """Several hosts meet as configured; `plan_at` returns the plan for the rendezvous that they reported."""
    plan_at: Callable[[Rendezvous | None], LaunchPlan]
    config: str
    """The resolved configuration as YAML, secrets masked."""
    notices: tuple[str, ...]


def prepare(
    request: Request, run_id: str | None = None, *, only_plans: bool = False, any_hosts: bool = False
) -> Prepared:
    """Check the configuration and decide everything about its start; `run_id` is generated unless given.

    With `only_plans` the job is not started here: it may need more devices than this host has; with
    `any_hosts` more hosts than there are, too.

    Raises:
        UserError: the configuration has mistakes; those of all stages are reported.
    """
    source_map = request.source_map
    checked = check_stages(request.config, source_map, only_plans, any_hosts)
    experiment, engine, job, share = checked.experiment, checked.engine, checked.job, checked.share
    if not only_plans and (problems := _masked(experiment, source_map)):
        raise UserError(problems)
    names = {host.platform for host in job.hosts}
    kinds = {name: platforms.find(name, hostfile_type(experiment)) for name in names}
    started = run_id or new_run_id(experiment.name, time.strftime("%Y%m%d-%H%M%S"), secrets.token_hex(2))
    fewer = _fewer_hosts(experiment, engine, job, source_map)

    def plan_at(rendezvous: Rendezvous | None) -> LaunchPlan:
        return build_plan(
            job,
            experiment,
            kinds,
            run_id=started,
            python=experiment.runner.python or sys.executable,
            source_root=CLONE,
            cwd=Path.cwd(),
            share=share,
            rendezvous=rendezvous,
            fewer_hosts=fewer,
            started_on=this_machine(),
        )

    config = config_text(experiment, job.texts)
    notices = (*checked.notices, *job.notices, *setting_notices(experiment, job, source_map))
    return Prepared(experiment, engine, job, plan_at(None), plan_at, config, notices)


def _fewer_hosts(experiment: Experiment, engine: Engine, job: Job, source_map: SourceMap) -> tuple[int, ...]:
    """Return the smaller numbers of hosts, within `nnodes: min:max`, that the parallel degrees also fit."""
    if job.own_roles:
        return ()
    least, _ = experiment.runner.host_range(len(job.hosts))
    where = source_map.where("experiment.runner.nnodes")
    fitting, why = [], ""
    for count in range(len(job.hosts) - 1, least - 1, -1):
        try:
            engine.build(experiment, job.hosts[:count], SourceMap())
            fitting.append(count)
        except UserError as error:
            why = why or f"with {count}: {error.problems[0].what}"
    if least < len(job.hosts) and not fitting:
        what = f"the job does not fit any number of hosts from {least} to {len(job.hosts) - 1} ({why})"
        raise UserError(
            [Problem(what, where, "set nnodes to a single number, or change the keys that it names")]
        )
    return tuple(fitting)


def _masked(experiment: Experiment, source_map: SourceMap) -> list[Problem]:
    """Return the secrets that a file of ours does not hold, with which the job would fail much later."""
    trees = {"experiment.envs": experiment.envs.model_dump(), experiment.task.type: experiment.arguments}
    return [
        Problem(
            "this file was written by FlagScale, which masks the values of secrets",
            source_map.where(path),
            f"give it, for example with '{path}=${{oc.env:{path.rpartition('.')[2].upper()}}}'",
        )
        for section, tree in trees.items()
        for path in masks(tree, section)
    ]


def config_text(experiment: Experiment, texts: Mapping[str, str]) -> str:
    """Return YAML that loads as this experiment, except for secrets; keys that hold defaults are left out."""
    given = experiment.model_dump(
        mode="json", exclude={"arguments", "name", "exp_dir"}, exclude_defaults=True
    )
    task = {"type": experiment.task.type, **given.pop("task")}
    sections = {name: section for name, section in given.items() if section}
    tree = {
        "experiment": {
            "exp_name": experiment.name,
            "exp_dir": str(experiment.exp_dir),
            "task": task,
            **sections,
        },
        experiment.task.type: experiment.arguments,
    }
    return recorded_yaml(tree, texts)
