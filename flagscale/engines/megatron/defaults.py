"""What a training gets for keys that its configuration leaves out: places in the run directory, names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flagscale.checks.lora import PRETRAINED
from flagscale.checks.pretrained import CONVERTED
from flagscale.checks.tracking import EXPERIMENT, RUN_FILE, RUN_NAME, URI
from flagscale.config.engine_args import FlatKey, Unknown
from flagscale.config.schema import Experiment
from flagscale.run.rundir import RunDir

_ONLY_WITH = {
    "wandb_save_dir": "wandb_project",
    "wandb_exp_name": "wandb_project",
    "trace_dir": "profile",
    CONVERTED: PRETRAINED,
    **dict.fromkeys((EXPERIMENT, RUN_NAME, RUN_FILE), URI),
}
"""Keys whose default is passed on only if another key is set."""


def defaults_of(experiment: Experiment) -> dict[str, Any]:
    """Return the run directory's folders and the run's name, for keys that the task level does not have."""
    run_dir = RunDir(experiment.exp_dir)
    return {
        **folders_in(run_dir),
        "wandb_save_dir": run_dir.path,
        "wandb_exp_name": experiment.name,
        "trace_dir": run_dir.traces,
        EXPERIMENT: experiment.name,
        RUN_NAME: experiment.name,
        RUN_FILE: run_dir.mlflow_run,
    }


def folders_in(run_dir: RunDir) -> dict[str, Any]:
    """Return those of them that the rules of a job read, which are checked before there is an experiment."""
    return {
        "save": run_dir.checkpoints,
        "load": run_dir.checkpoints,
        "tensorboard_dir": run_dir.tensorboard,
        "metrics_file": run_dir.metrics,
        CONVERTED: run_dir.converted,
    }


def missing_keys(defaults: Mapping[str, Any], flat_keys: Sequence[FlatKey]) -> Iterator[FlatKey]:
    """Yield the defaults that apply, unless the task level sets others (or `null`).

    A job that saves elsewhere also resumes from there: the engine would overwrite what it does not load.
    """
    named = {flat_key.name: flat_key.value for flat_key in flat_keys}
    values = {**defaults, "load": named.get("save") or defaults["load"]}
    known = {name for name, value in named.items() if value and value is not Unknown.VALUE}
    for name, value in values.items():
        if name not in named and (name not in _ONLY_WITH or _ONLY_WITH[name] in known):
            yield FlatKey(name, value if value is Unknown.VALUE else str(value), name)
