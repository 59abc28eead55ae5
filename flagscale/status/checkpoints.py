"""`action=checkpoints`: the checkpoints of a training as text and as JSON."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flagscale.config.command import Request, absolute
from flagscale.config.load import load_experiment
from flagscale.engines.megatron.adapter import MEGATRON, given_arguments
from flagscale.errors import Problem, UserError
from flagscale.formats import bytes_text, count
from flagscale.run.checkpoint_list import Listed, list_checkpoints
from flagscale.run.retention import Retention

_READ = ("save", "load", "ckpt_step", "keep_last", "keep_every", "metrics_file")


def lists_of(request: Request) -> dict[Path, list[Listed] | None]:
    """Return the checkpoints in the folders that a training saves to and loads from; None: no such folder.

    Raises:
        UserError: the job is no training with Megatron, or the keys that name the folders have a mistake.
    """
    loaded = load_experiment(request.config, request.source_map)
    experiment = loaded.experiment
    if experiment is None:
        raise UserError(loaded.problems)
    if experiment.task.backend != MEGATRON.name:
        what = f"`{experiment.task.backend}` saves no checkpoints; this action is for trainings"
        raise UserError([Problem(what, request.source_map.where("experiment.task.backend"))])
    given = given_arguments(experiment, _READ, request.source_map)
    last, metrics = given["keep_last"], given["metrics_file"]
    save, load = (absolute(given[name]) if given[name] else None for name in ("save", "load"))
    return {
        directory: list_checkpoints(
            directory,
            absolute(metrics) if metrics else None,
            Retention(last, given["keep_every"] or 0) if last and directory == save else None,
            given["ckpt_step"] if directory == load else None,
        )
        if directory.is_dir()
        else None
        for directory in dict.fromkeys(filter(None, (save, load)))
    }


_HEAD = ("iteration", "size", "saved", "loss", "state")


def checkpoints_json(directory: Path, listed: Sequence[Listed]) -> dict[str, Any]:
    """Return the list for programs: sizes in bytes, times in seconds since 1970."""
    return {"directory": str(directory), "checkpoints": [asdict(one) for one in listed]}


def checkpoints_text(directory: Path, listed: Sequence[Listed]) -> str:
    """Return a table of the checkpoints, and which of them would be loaded."""
    size = bytes_text(sum(one.nbytes for one in listed))
    rows = [_HEAD, *map(_row, listed)]
    wide = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [f"{directory}: {count(len(listed), 'checkpoint')}, {size}"]
    for row in rows:
        *figures, state = (text.rjust(width) for text, width in zip(row, wide, strict=True))
        lines.append("  ".join(["", *figures, state.strip()]))
    loads = next((one.name for one in listed if one.loads), "no checkpoint")
    return "\n".join([*lines, f"  a run that resumes from here loads {loads}"])


def _row(one: Listed) -> tuple[str, ...]:
    name = one.name if one.iteration is None else str(one.iteration)
    saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.saved))
    loss = "-" if one.loss is None else f"{one.loss:.4f}"
    kept = one.kept_by or "removed after a later save"
    return name, bytes_text(one.nbytes), saved, loss, one.fault or f"complete; {kept}"
