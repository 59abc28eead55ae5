"""`--async-save`: training continues while a checkpoint is written; for CPUs see chips/forked_save.py."""

from __future__ import annotations

import importlib.util


def arguments() -> tuple[str, ...]:
    """Return the arguments that make `--async-save` effective here; a user's own come after them."""
    built_in = importlib.util.find_spec("nvidia_resiliency_ext") is None
    # Without the first one the trainer saves synchronously and only prints a warning.
    return ("--use-persistent-ckpt-worker", *(("--async-strategy=mcore",) if built_in else ()))
