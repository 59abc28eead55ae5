"""One short function an action; each returns the exit code that README promises."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from omegaconf import DictConfig

from flagscale import platforms, registry
from flagscale.cluster.hosts import select_hosts
from flagscale.config.load import load_command_keys, load_exp_dir, load_experiment
from flagscale.config.locate import Locator
from flagscale.config.schema import Experiment
from flagscale.config.secrets import masked
from flagscale.engines.base import Engine
from flagscale.errors import Problem, UserError, nearest
from flagscale.follow import LogTail, current_status, follow
from flagscale.job import Job, LaunchPlan
from flagscale.launch import launcher
from flagscale.launch.place import new_run_id, place
from flagscale.launch.place import secrets as job_secrets
from flagscale.launch.rundir import RunDir
from flagscale.preflight import preflight, require_free_port
from flagscale.report import plan_text, started_text, status_json, status_text

SOURCE_ROOT = Path(__file__).resolve().parent.parent
_FOLLOW_SECONDS = 1.0


@dataclass(frozen=True)
class Request:
    """What a command was asked: the composed configuration and where its keys were written."""

    config: DictConfig
    locator: Locator


@dataclass(frozen=True)
class Prepared:
    """A configuration that passed every check on this host."""

    experiment: Experiment
    job: Job
    plan: LaunchPlan
    config: str
    """The resolved configuration as YAML, secrets masked."""


def prepare(request: Request, run_id: str | None = None) -> Prepared:
    """Check everything that can be checked here and return the plan; notices go to stderr.

    Raises:
        UserError: with all mistakes of the level that has some.
    """
    experiment, notices = load_experiment(request.config, request.locator)
    engine = _engine(experiment, request.locator)
    _check_entrypoint(experiment, request.locator)
    platform = platforms.find(experiment.runner.platform, request.locator.where("experiment.runner.platform"))
    hosts = select_hosts(experiment.runner, platform.name, platform.count_devices(), platform.shares_devices)
    job = engine.build(experiment, hosts, request.locator)
    for notice in (*notices, *job.notices):
        print(f"note: {notice}", file=sys.stderr)
    plan = place(
        job,
        experiment,
        {host.platform: platforms.find(host.platform, "type= in the hostfile") for host in hosts},
        run_id=run_id or new_run_id(experiment.name, time.strftime("%Y%m%d-%H%M%S"), secrets.token_hex(2)),
        python=experiment.runner.python or sys.executable,
        source_root=SOURCE_ROOT,
        cwd=Path.cwd(),
    )
    return Prepared(experiment, job, plan, _config_text(experiment))


def run(request: Request) -> int:
    """Start the job in the background and confirm that every host runs it."""
    print(started_text(_start(request)))
    return 0


def test(request: Request) -> int:
    """Run the job in the foreground: progress until it ends; Ctrl-C stops it on all hosts."""
    plan = _start(request)
    print(started_text(plan), flush=True)
    try:
        status = follow(plan)
    except KeyboardInterrupt:
        print("\nstopping the job ...", flush=True)
        _stop(plan)
        return 130
    print(status_text(status))
    code = next((host.state.exit_code for host in status.hosts if host.state and host.state.exit_code), 0)
    return code if code > 0 else status.exit_code


def dryrun(request: Request) -> int:
    """Print the configuration and scripts that `run` would use; touch no host and write nothing."""
    prepared = prepare(request, run_id="dryrun")
    print(plan_text(prepared.plan, prepared.config))
    return 0


def check(request: Request) -> int:
    """Perform every check, also those that ask the hosts, and tell the outcome of each."""
    prepared = prepare(request, run_id="check")
    engine = _engine(prepared.experiment, request.locator)
    outcomes = preflight(prepared.experiment, prepared.job, engine.distribution)
    for outcome in outcomes:
        print(f"{'ok    ' if outcome.ok else 'FAILED'}  {outcome.host}  {outcome.text}")
    return 0 if all(outcome.ok for outcome in outcomes) else 1


def query(request: Request) -> int:
    """Print one status (or, with +follow=true, watch until the job ends)."""
    as_json, watch = load_command_keys(request.config)
    plan = _recorded(request)
    if plan is None:
        return 3
    if watch and not as_json:
        status = follow(plan)
    else:
        status = current_status(plan)
        while watch and not status.ended:
            print(json.dumps(status_json(status)), flush=True)
            time.sleep(_FOLLOW_SECONDS)
            status = current_status(plan)
    print(json.dumps(status_json(status)) if as_json else status_text(status))
    return status.exit_code


def logs(request: Request) -> int:
    """Print what the newest run's hosts printed; with +follow=true go on until the job ends."""
    _, watch = load_command_keys(request.config)
    plan = _recorded(request)
    if plan is None:
        return 3
    tail = LogTail(plan)
    tail.skip_earlier_runs()
    while True:
        ended = not watch or current_status(plan).ended
        for line in tail.lines():
            print(line, flush=watch)
        if ended:
            return 0
        time.sleep(_FOLLOW_SECONDS)


def stop(request: Request) -> int:
    """End every process of the run on every host; again is harmless."""
    plan = _recorded(request)
    return 0 if plan is None else _stop(plan)


ACTIONS: Mapping[str, Callable[[Request], int]] = {
    "run": run,
    "test": test,
    "dryrun": dryrun,
    "check": check,
    "query": query,
    "logs": logs,
    "stop": stop,
}


def _start(request: Request) -> LaunchPlan:
    prepared = prepare(request)
    engine = _engine(prepared.experiment, request.locator)
    require_free_port(prepared.experiment, prepared.job, engine.distribution)
    launcher.start(prepared.plan, prepared.config, job_secrets(prepared.job, prepared.experiment))
    return prepared.plan


def _stop(plan: LaunchPlan) -> int:
    replies = launcher.stop(plan)
    for host, reply in replies.items():
        print(f"host {host.rank}  {host.name}  {reply['message']}")
    return 0 if all(reply["ok"] for reply in replies.values()) else 1


def _recorded(request: Request) -> LaunchPlan | None:
    """The plan of the newest start; tells where it looked when there is none."""
    exp_dir = load_exp_dir(request.config)
    plan = RunDir(exp_dir).read_plan()
    if plan is None:
        print(f"nothing was started in {exp_dir}", file=sys.stderr)
    return plan


def _engine(experiment: Experiment, locator: Locator) -> Engine:
    engine: Engine = registry.load(
        "engines", experiment.task.backend, locator.where("experiment.task.backend")
    )
    if experiment.task.type not in engine.task_types:
        what = f"the engine `{engine.name}` does not do `{experiment.task.type}`"
        hint = f"it does: {', '.join(engine.task_types)}"
        raise UserError([Problem(what, locator.where("experiment.task.type"), hint)])
    return engine


def _check_entrypoint(experiment: Experiment, locator: Locator) -> None:
    entrypoint = experiment.task.entrypoint
    if entrypoint.endswith(".py"):
        exists = Path(entrypoint).is_file()
    else:
        parts = entrypoint.split(".")
        # Only our own modules can be looked up without importing an engine's package.
        exists = (
            parts[:2] != ["megatron", "flagscale"]
            or SOURCE_ROOT.joinpath(*parts).with_suffix(".py").is_file()
        )
    if not exists:
        modules = [
            f"megatron.flagscale.{path.stem}"
            for path in (SOURCE_ROOT / "megatron/flagscale").glob("train_*.py")
        ]
        where = locator.where("experiment.task.entrypoint")
        raise UserError([Problem(f"no such program: `{entrypoint}`", where, nearest(entrypoint, modules))])


def _config_text(experiment: Experiment) -> str:
    section = experiment.model_dump(mode="json", exclude={"arguments", "name", "exp_dir"})
    tree = {
        "experiment": {"exp_name": experiment.name, "exp_dir": str(experiment.exp_dir), **section},
        experiment.task.type: experiment.arguments,
    }
    return yaml.safe_dump(masked(tree), sort_keys=False, allow_unicode=True)
