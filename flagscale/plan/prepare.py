"""Turn a composed configuration into a plan, after all checks that this host can do; report all mistakes."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from flagscale import platforms, registry
from flagscale.config.load import load_experiment, load_task, read_section
from flagscale.config.recorded import recorded_yaml
from flagscale.config.schema import Experiment
from flagscale.config.source_map import SourceMap
from flagscale.engines.base import Engine
from flagscale.errors import Problem, UserError
from flagscale.plan.entrypoint import CLONE, check_entrypoint
from flagscale.plan.hosts import select_hosts
from flagscale.plan.notices import setting_notices
from flagscale.plan.placement import build_plan, new_run_id
from flagscale.plan.runner import LocalDevices, RunnerRules
from flagscale.run.machine import this_machine
from flagscale.values import Host, Job, LaunchPlan, Rendezvous


@dataclass(frozen=True)
class Request:
    """The input of a command: the composed configuration and the source of each key."""

    config: DictConfig
    source_map: SourceMap


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


def prepare(request: Request, run_id: str | None = None) -> Prepared:
    """Check the configuration and decide everything about its start; `run_id` is generated unless given.

    Raises:
        UserError: the configuration has mistakes; those of all levels are reported.
    """
    source_map = request.source_map
    try:
        experiment, notices = load_experiment(request.config, source_map)
        rules, experiment = _with_runner(experiment, source_map)
    except UserError as error:
        reported = {problem.where for problem in error.problems}
        more = (problem for problem in _task_problems(request) if problem.where not in reported)
        raise UserError([*error.problems, *more]) from None
    share = rules.share(experiment.exp_dir, experiment.runner.node_rank, os.environ)
    engine, job = _job(experiment, rules, source_map)
    if job.services and len(job.hosts) > 1 and share.rank is not None:
        # Services need the addresses of all hosts, which only a command that starts all of them knows.
        what, hint = f"`{rules.name}` cannot start services on several hosts", "set nnodes: 1, or type: ssh"
        raise UserError([Problem(what, source_map.where("experiment.runner.type"), hint)])
    kinds = {host.platform: platforms.find(host.platform, _hostfile_type(experiment)) for host in job.hosts}
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

    config = _config_text(experiment, job.texts)
    all_notices = (*notices, *job.notices, *setting_notices(experiment, job, source_map))
    return Prepared(experiment, engine, job, plan_at(None), plan_at, config, all_notices)


def _fewer_hosts(experiment: Experiment, engine: Engine, job: Job, source_map: SourceMap) -> tuple[int, ...]:
    """Return the smaller numbers of hosts, within `nnodes: min:max`, that the parallel degrees also fit."""
    least, _ = experiment.runner.host_range(len(job.hosts))
    where = source_map.where("experiment.runner.nnodes")
    if least < len(job.hosts) and len({(host.slots, host.platform) for host in job.hosts}) > 1:
        what = "any host may be left out, so all hosts need the same slots and type"
        raise UserError([Problem(what, where, "set nnodes to a single number")])
    fitting = []
    for count in range(len(job.hosts) - 1, least - 1, -1):
        with suppress(UserError):
            engine.build(experiment, job.hosts[:count], SourceMap())
            fitting.append(count)
    if least < len(job.hosts) and not fitting:
        what = f"the parallel degrees do not fit any number of hosts from {least} to {len(job.hosts) - 1}"
        raise UserError([Problem(what, where, "set nnodes to a single number, or change the degrees")])
    return tuple(fitting)


def _task_problems(request: Request) -> list[Problem]:
    """Return the mistakes of the task level that can be found even if the experiment level has some."""
    task, arguments = load_task(request.config)
    if not registry.is_known("engines", task.backend):
        return []
    engine: Engine = registry.load("engines", task.backend)
    # The keys of a task type that it does not support would all be reported as unknown.
    return engine.check(task, arguments, request.source_map) if task.type in engine.task_types else []


def _with_runner(experiment: Experiment, source_map: SourceMap) -> tuple[RunnerRules, Experiment]:
    """Return the rules of the experiment's runner, and the experiment as completed by them."""
    where = source_map.where
    rules: RunnerRules = registry.load(
        "runners", experiment.runner.type, where("experiment.runner.type")
    ).rules
    problems = rules.refusals(experiment.runner, where)
    _, found = read_section(rules.options, experiment.runner.options, "experiment.runner.options", source_map)
    problems += found
    try:
        runner = rules.resolve(experiment.runner, os.environ, where)
    except UserError as error:
        raise UserError([*problems, *error.problems]) from None
    if problems:
        raise UserError(problems)
    return rules, experiment.model_copy(update={"runner": runner})


def _job(experiment: Experiment, rules: RunnerRules, source_map: SourceMap) -> tuple[Engine, Job]:
    """Build the job; collect the problems of engine, program, hosts and arguments."""
    problems: list[Problem] = []

    def gathered[Value](make: Callable[[], Value]) -> Value | None:
        try:
            return make()
        except UserError as error:
            problems.extend(error.problems)
            return None

    engine = gathered(lambda: _engine(experiment, source_map))
    gathered(lambda: check_entrypoint(experiment.task.entrypoint, source_map))
    hosts = gathered(lambda: _hosts(experiment, rules, source_map))
    job = None
    if engine and hosts:
        job = gathered(lambda: engine.build(experiment, hosts, source_map))
    elif engine:
        problems += engine.check(experiment.task, experiment.arguments, source_map)
    if problems or engine is None or job is None:
        raise UserError(problems)
    return engine, job


def _engine(experiment: Experiment, source_map: SourceMap) -> Engine:
    where = source_map.where("experiment.task.backend")
    engine: Engine = registry.load("engines", experiment.task.backend, where)
    return engine


def _hosts(experiment: Experiment, rules: RunnerRules, source_map: SourceMap) -> tuple[Host, ...]:
    runner = experiment.runner
    platform = platforms.find(runner.platform, source_map.where("experiment.runner.platform"))
    registry.load("transports", runner.transport, source_map.where("experiment.runner.transport"))
    count = platform.count_devices({**os.environ, **experiment.envs.common()})
    devices = LocalDevices(platform.name, count, platform.shares_devices)
    hosts = select_hosts(rules, runner, devices, source_map)
    for host in hosts:
        platforms.find(host.platform, _hostfile_type(experiment))
    return hosts


def _hostfile_type(experiment: Experiment) -> str:
    return f"{experiment.runner.hostfile}: type="


def _config_text(experiment: Experiment, texts: Mapping[str, str]) -> str:
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
