"""`--async-save`: training goes on while a checkpoint is written; without CUDA see chips/forked_save.py."""

from __future__ import annotations

import importlib.util
from typing import Any

from flagscale.errors import Problem


def arguments() -> tuple[str, ...]:
    """Return what makes `--async-save` effective here; a user's own arguments come after these."""
    built_in = importlib.util.find_spec("nvidia_resiliency_ext") is None
    # Without the first the trainer saves synchronously, and says so only in a warning.
    return ("--use-persistent-ckpt-worker", *(("--async-strategy=mcore",) if built_in else ()))


def problems(args: Any, cuda: bool) -> list[Problem]:
    """Refuse an asynchronous save that would be switched off or could not be finished."""
    if not args.async_save:
        return []
    found = []
    if not cuda and args.async_strategy != "mcore":
        found.append(Problem(f"--async-strategy {args.async_strategy} needs a CUDA device: leave it out"))
    if not cuda and args.ckpt_format != "torch_dist":
        found.append(
            Problem(
                f"--async-save without a CUDA device needs --ckpt-format torch_dist, not {args.ckpt_format}"
            )
        )
    return found
