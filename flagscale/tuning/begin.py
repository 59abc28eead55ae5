"""The beginning of a tuning: its candidates with what is expected of them, after all checks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from flagscale import __version__
from flagscale.checks.schedule import last_batch
from flagscale.config.command import Request, load_command_keys
from flagscale.config.resolve import resolve
from flagscale.config.schema import AutoTuner
from flagscale.engines.megatron.rules import machine_of
from flagscale.errors import Problem, UserError
from flagscale.plan.prepare import Prepared, prepare
from flagscale.planner.tuning.candidates import candidates
from flagscale.planner.tuning.propose import Known
from flagscale.planner.tuning.space import Space, read_space
from flagscale.run.tuner_dir import TunerDir
from flagscale.tuning import history
from flagscale.tuning.figures import Prior, learnt
from flagscale.tuning.prior import prior_of
from flagscale.tuning.requests import OF_TRIALS, smallest_request, trial_request

Say = Callable[[str], None]


@dataclass
class Tuning:
    """A tuning in progress: what it tries, and what it has found."""

    request: Request
    prepared: Prepared
    space: Space
    prior: Prior
    batch: int
    conditions: history.Conditions
    files: TunerDir
    say: Say
    started: float = field(default_factory=time.time)
    entries: list[dict[str, Any]] = field(default_factory=list)
    """The trials that count, of earlier commands too."""

    @property
    def keys(self) -> AutoTuner:
        return self.prepared.experiment.auto_tuner

    @property
    def known(self) -> Known:
        return learnt(self.entries, self.prior)

    @property
    def best(self) -> dict[str, Any] | None:
        """The first trial of the fastest layout so far, with the mean time of all its trials."""
        return history.best_of(self.entries)


def tunable(request: Request) -> Request:
    """Return the request of a tuning whose job passes the checks.

    If its own layout is illegal, which the tuner replaces in any case, it gets the smallest one.
    """
    try:
        prepare(request, "check")
    except UserError as error:
        if resolve(request.config, request.source_map)[1]:
            return request  # keys without a value, which a new request would leave out
        smallest = smallest_request(request)
        try:
            prepare(smallest, "check")
        except UserError as other:
            # The one whose mistakes are to be reported: those of the layout are none.
            return smallest if len(other.problems) < len(error.problems) else request
        return smallest
    return request


def begin(request: Request, prepared: Prepared, say: Say) -> Tuning:
    """Return a tuning before its first trial: its candidates with their estimates."""
    job, keys, where = prepared.job, prepared.experiment.auto_tuner, request.source_map.where
    _refuse_untunable(prepared, request)
    batch = last_batch(job.arguments)
    values = {**job.arguments, "global_batch_size": batch or None}
    per_host = min(host.slots for host in job.hosts)
    place = "experiment.auto_tuner.space"
    places = {"": where(place), **{name: where(f"{place}.{name}") for name in keys.space}}
    space = read_space(keys.space, values, job.world_size, per_host, machine_of(job.hosts), places)
    found = candidates(space)
    chip = load_command_keys(request.config).chip
    prior = prior_of(prepared, space, found, chip, request.source_map)
    files = TunerDir.of(prepared.experiment.exp_dir)
    # Mistakes that each trial would have are reported before the first one.
    iterations = keys.control.train_iters
    trial = prepare(trial_request(request, found[0], files.path / "check", iterations, batch), "check")
    return Tuning(
        request=request,
        prepared=prepared,
        space=space,
        prior=prior,
        batch=batch,
        conditions=conditions_of(trial, found[0]),
        files=files,
        say=say,
    )


def _refuse_untunable(prepared: Prepared, request: Request) -> None:
    job, where = prepared.job, request.source_map.where
    if not job.arguments or prepared.plan.task_type != "train":
        what = f"only trainings can be tuned, not `{prepared.plan.task_type}` with `{job.engine}`"
        raise UserError([Problem(what, where("experiment.task.type"))])
    if prepared.plan.has_own_jobs:
        what = "with `per_node_task` each host trains by itself"
        raise UserError([Problem(what, where("experiment.runner.per_node_task"), "tune the job of one host")])
    if prepared.plan.job_dir and len(job.hosts) > 1:
        what = "here every host runs a command of its own, and their tuners would not agree on the trials"
        hint = "set nnodes: 1, or use a runner that starts all hosts from one, such as ssh"
        raise UserError([Problem(what, where("experiment.runner.type"), hint)])
    if taken := OF_TRIALS & prepared.experiment.auto_tuner.space.keys():
        raise UserError(
            Problem(
                f"`{name}` cannot be tuned: every trial has its own value of it, or none",
                where(f"experiment.auto_tuner.space.{name}"),
                "remove it from the space",
            )
            for name in sorted(taken)
        )


def conditions_of(trial: Prepared, changes: Mapping[str, Any]) -> history.Conditions:
    """Return what must be equal for the trials of an earlier command to count.

    `trial`: a trial of the job; `changes`: those of any candidate, whose arguments differ between trials.
    """
    job, experiment = trial.job, trial.experiment
    inside = str(experiment.exp_dir)
    fixed = {
        name: value
        for name, value in job.arguments.items()
        if name not in changes and not (isinstance(value, str) and value.startswith(inside))
    }
    around = [experiment.envs.model_dump(mode="json"), experiment.cmds.before_start]
    versions = {"flagscale": __version__, job.engine: job.engine_version, **_installed("torch")}
    hosts = [f"{host.name} slots={host.slots} {host.platform}" for host in job.hosts]
    arguments = history.hashed([job.role.entrypoint, fixed, around])
    return history.Conditions(arguments, versions, hosts)


def _installed(name: str) -> dict[str, str]:
    try:
        return {name: version(name)}
    except PackageNotFoundError:
        return {}
