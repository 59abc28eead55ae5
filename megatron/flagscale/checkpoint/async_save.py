"""`--async-save`: training goes on while a checkpoint is written; without CUDA see chips/forked_save.py."""

from __future__ import annotations

import importlib.util


def arguments() -> tuple[str, ...]:
    """Return what makes `--async-save` effective here; a user's own arguments come after these."""
    built_in = importlib.util.find_spec("nvidia_resiliency_ext") is None
    # Without the first the trainer saves synchronously, and says so only in a warning.
    return ("--use-persistent-ckpt-worker", *(("--async-strategy=mcore",) if built_in else ()))
