"""From a composed configuration to a plan: every check that this host can do, every mistake at once."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from omegaconf import DictConfig

from flagscale import platforms, registry
from flagscale.cluster.hosts import select_hosts
from flagscale.config.load import load_experiment, load_task
from flagscale.config.locate import Locator
from flagscale.config.schema import Experiment
from flagscale.config.secrets import masked
from flagscale.engines.base import Engine
from flagscale.errors import Problem, UserError, nearest
from flagscale.job import Host, Job, LaunchPlan
from flagscale.launch.place import new_run_id, place

SOURCE_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Request:
    """What a command was asked: the composed configuration and where its keys were written."""

    config: DictConfig
    locator: Locator


@dataclass(frozen=True)
class Prepared:
    """A configuration that passed every check on this host."""

    experiment: Experiment
    engine: Engine
    job: Job
    plan: LaunchPlan
    config: str
    """The resolved configuration as YAML, secrets masked."""
    notices: tuple[str, ...]


def prepare(request: Request, run_id: str | None = None) -> Prepared:
    """Check the configuration and decide everything about its start; `run_id` is made up unless given.

    Raises:
        UserError: with the mistakes of all levels.
    """
    locator = request.locator
    try:
        experiment, notices = load_experiment(request.config, locator)
    except UserError as error:
        told = {problem.where for problem in error.problems}
        more = (problem for problem in _task_problems(request) if problem.where not in told)
        raise UserError([*error.problems, *more]) from None
    engine, job = _job(experiment, locator)
    plan = place(
        job,
        experiment,
        {host.platform: platforms.find(host.platform, _hostfile_type(experiment)) for host in job.hosts},
        run_id=run_id or new_run_id(experiment.name, time.strftime("%Y%m%d-%H%M%S"), secrets.token_hex(2)),
        python=experiment.runner.python or sys.executable,
        source_root=SOURCE_ROOT,
        cwd=Path.cwd(),
    )
    return Prepared(experiment, engine, job, plan, _config_text(experiment), (*notices, *job.notices))


def _task_problems(request: Request) -> list[Problem]:
    """The mistakes of the task level that can be seen although the experiment level has some."""
    group, backend, arguments = load_task(request.config)
    if backend not in registry.names("engines"):
        return []
    engine: Engine = registry.load("engines", backend)
    return engine.check(group, arguments, request.locator)


def _job(experiment: Experiment, locator: Locator) -> tuple[Engine, Job]:
    """Build the job, gathering what the engine, the program, the hosts and the arguments have against it."""
    problems: list[Problem] = []

    def gathered[Value](make: Callable[[], Value]) -> Value | None:
        try:
            return make()
        except UserError as error:
            problems.extend(error.problems)
            return None

    engine = gathered(lambda: _engine(experiment, locator))
    gathered(lambda: _check_entrypoint(experiment, locator))
    hosts = gathered(lambda: _hosts(experiment, locator))
    job = None
    if engine and hosts:
        job = gathered(lambda: engine.build(experiment, hosts, locator))
    elif engine:
        problems += engine.check(experiment.task.type, experiment.arguments, locator)
    if problems or engine is None or job is None:
        raise UserError(problems)
    return engine, job


def _engine(experiment: Experiment, locator: Locator) -> Engine:
    engine: Engine = registry.load(
        "engines", experiment.task.backend, locator.where("experiment.task.backend")
    )
    if experiment.task.type not in engine.task_types:
        what = f"the engine `{engine.name}` does not do `{experiment.task.type}`"
        hint = f"it does: {', '.join(engine.task_types)}"
        raise UserError([Problem(what, locator.where("experiment.task.type"), hint)])
    return engine


def _hosts(experiment: Experiment, locator: Locator) -> tuple[Host, ...]:
    runner = experiment.runner
    platform = platforms.find(runner.platform, locator.where("experiment.runner.platform"))
    devices = platform.count_devices({**os.environ, **experiment.envs})
    hosts = select_hosts(runner, platform.name, devices, platform.shares_devices, locator)
    for host in hosts:
        platforms.find(host.platform, _hostfile_type(experiment))
    return hosts


def _hostfile_type(experiment: Experiment) -> str:
    return f"{experiment.runner.hostfile}: type="


def _check_entrypoint(experiment: Experiment, locator: Locator) -> None:
    entrypoint = experiment.task.entrypoint
    if entrypoint.endswith(".py"):
        exists = Path(entrypoint).is_file()
    else:
        parts = entrypoint.split(".")
        # Only our own modules can be looked up without importing an engine's package.
        ours = parts[:2] == ["megatron", "flagscale"]
        exists = not ours or SOURCE_ROOT.joinpath(*parts).with_suffix(".py").is_file()
    if not exists:
        programs = (SOURCE_ROOT / "megatron/flagscale").glob("train_*.py")
        hint = nearest(entrypoint, [f"megatron.flagscale.{path.stem}" for path in programs])
        where = locator.where("experiment.task.entrypoint")
        raise UserError([Problem(f"no such program: `{entrypoint}`", where, hint)])


def _config_text(experiment: Experiment) -> str:
    section = experiment.model_dump(mode="json", exclude={"arguments", "name", "exp_dir"})
    tree = {
        "experiment": {"exp_name": experiment.name, "exp_dir": str(experiment.exp_dir), **section},
        experiment.task.type: experiment.arguments,
    }
    return yaml.safe_dump(masked(tree), sort_keys=False, allow_unicode=True)
