"""The configurations of trials and of the winner: the user's own, with other arguments of the engine."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flagscale.config.command import Request
from flagscale.config.engine_args import leaf_name
from flagscale.config.recorded import literal
from flagscale.config.resolve import resolve
from flagscale.planner.tuning.candidates import SMALLEST
from flagscale.planner.tuning.space import Changes

_SET: Mapping[str, Any] = {
    "log_interval": 1,
    "save": None,
    "load": None,
    "tensorboard_dir": None,
    "eval_iters": 0,
    "lr_decay_style": "constant",
}
"""Arguments of every trial: each iteration is logged, nothing is saved, loaded or evaluated."""

_LEFT_OUT = (
    *("train_samples", "rampup_batch_size", "step_batch_size_schedule", "metrics_file"),
    *("lr_warmup_samples", "lr_warmup_iters", "lr_warmup_fraction", "lr_decay_samples", "lr_decay_iters"),
    *("lr_wsd_decay_samples", "lr_wsd_decay_iters"),
    *("pretrained_checkpoint", "finetune", "finetune_with_optim", "ckpt_step", "async_save"),
    *("save_retain_interval", "non_persistent_save_interval", "non_persistent_ckpt_type"),
    *("keep_last", "keep_every", "profile", "use_pytorch_profiler", "profile_ranks", "profile_step_start"),
    *("profile_step_end", "record_memory_history", "pytorch_profiler_collect_shapes", "record_shapes"),
    *("pytorch_profiler_collect_callstack", "pytorch_profiler_collect_chakra", "memory_snapshot_path"),
    *("non_persistent_global_ckpt_dir", "non_persistent_local_ckpt_dir", "exit_interval"),
    *("exit_duration_in_mins", "wandb_project", "wandb_exp_name", "wandb_save_dir"),
    *("skip_samples_range", "skip_iters_range", "on_bad_loss", "bad_loss_factor", "bad_loss_window"),
    *("max_rollbacks", "mlflow_run_file", "trace_dir", "converted_dir"),
    *("mlflow_tracking_uri", "mlflow_experiment", "mlflow_run_name"),
    *("full_validation", "multiple_validation_sets", "validation_set_names", "validation_set_intervals"),
)
"""Arguments that no trial has, because they are those of a whole training: length, schedules, checkpoints."""

OF_TRIALS = frozenset((*_SET, *_LEFT_OUT, "train_iters"))
"""Arguments that cannot be a dimension of a space."""


def trial_request(request: Request, changes: Changes, folder: Path, iterations: int, batch: int) -> Request:
    """Return the request of a trial in the run directory `folder`: iterations of `batch` samples."""
    tree = _tree(request)
    experiment = tree["experiment"]
    experiment["exp_dir"] = str(folder)
    experiment["runner"] = {**(experiment.get("runner") or {}), "max_restarts": 0}
    group = _group(tree)
    _leave_out(group, _LEFT_OUT)
    _set(group, {**_SET, "train_iters": iterations, "global_batch_size": batch, **changes})
    return _request(request, tree)


def smallest_request(request: Request) -> Request:
    """Return the request of the same tuning for a job whose own layout is the smallest one."""
    tree, _ = resolve(request.config, request.source_map)
    _set(_group(tree), SMALLEST)
    return _request(request, tree)


def winner_request(request: Request, changes: Changes) -> Request:
    """Return the request of the job itself, with the arguments of a candidate."""
    tree = _tree(request)
    _set(_group(tree), changes)
    return _request(request, tree)


def task_request(request: Request, task_file: str, words: Sequence[str]) -> Request:
    """Return the request of the job with the task group of a file (its text), and further overrides."""
    tree = _tree(request)
    group = OmegaConf.to_container(OmegaConf.create(task_file), resolve=True)
    tree[(tree["experiment"].get("task") or {}).get("type") or "train"] = group
    overrides = OmegaConf.to_container(OmegaConf.from_dotlist(list(words)))
    assert isinstance(overrides, dict)
    runner = overrides.get("experiment", {}).get("runner", {})
    tree["experiment"]["runner"] = {**(tree["experiment"].get("runner") or {}), **runner}
    return _request(request, tree)


def _tree(request: Request) -> dict[str, Any]:
    tree, _ = resolve(request.config, request.source_map)
    tree["experiment"].pop("auto_tuner", None)
    return tree


def _group(tree: dict[str, Any]) -> dict[str, Any]:
    task = tree["experiment"].get("task") or {}
    group: dict[str, Any] = tree[task.get("type") or "train"]
    return group


def _request(request: Request, tree: Mapping[str, Any]) -> Request:
    config = OmegaConf.create(literal(tree))
    assert isinstance(config, DictConfig)
    return Request(config, request.source_map)


def _leave_out(group: dict[str, Any], names: Collection[str]) -> None:
    for key, value in list(group.items()):
        if leaf_name(str(key)) in names:
            del group[key]
        elif isinstance(value, dict):
            _leave_out(value, names)


def _set(group: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Give arguments their values where they are written, or else at the top of the group."""
    missing = {name: value for name, value in changes.items() if not _replaced(group, name, value)}
    group |= missing


def _replaced(group: dict[str, Any], name: str, value: Any) -> bool:
    found = False
    for key, old in group.items():
        if leaf_name(str(key)) == name:
            group[key], found = value, True
        elif isinstance(old, dict):
            found |= _replaced(old, name, value)
    return found
