"""What a training program keeps in each checkpoint besides the model and the optimizer.

It is written into the checkpoint's folder when the trainer saves, also with `--async-save`, before the
manifest, which therefore lists it: a checkpoint without it is not complete.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

_writers: list[Callable[[Path], None]] = []


def add_to_checkpoints(write: Callable[[Path], None]) -> None:
    """Have `write` called with the folder of each checkpoint; all ranks have to add one, or none."""
    _writers.append(write)


def write_additions(folder: Path) -> None:
    """Call every writer, and wait for those of the other ranks."""
    import torch

    for write in _writers:
        write(folder)
    if _writers:
        torch.distributed.barrier()
