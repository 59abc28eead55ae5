"""What makes a finished save a checkpoint: it is complete or it is not there.

When all ranks have written, rank 0 writes a manifest (see manifest.py), and only then the trainer's tracker
file names the checkpoint; with `--async-save` this happens between two later iterations.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flagscale.errors import UserError
from megatron.flagscale.checkpoint.manifest import write_manifest
from megatron.flagscale.patching import Patch

_PROBE_BYTES = 8 * 1024 * 1024


def _start_clean(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def save_checkpoint(iteration: int, *positional: Any, **named: Any) -> Any:
        import torch
        from megatron.training import get_args, training

        # One save at a time: the writers of two would mix up their results, and hold twice the memory.
        training.maybe_finalize_async_save(blocking=True)
        args = get_args()
        if named.get("non_persistent_ckpt"):
            return original(iteration, *positional, **named)
        folder = Path(args.save) / f"iter_{iteration:07d}"
        with _told(folder):
            if torch.distributed.get_rank() == 0 and folder.exists():
                shutil.rmtree(folder)
            return original(iteration, *positional, **named)

    return save_checkpoint


def _seal(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def save(state_dict: Any, checkpoint_dir: str, *positional: Any, **named: Any) -> Any:
        """Return what the engine does: None, or the request whose `finalize_fns` follow the writing."""
        request = original(state_dict, checkpoint_dir, *positional, **named)
        folder = Path(checkpoint_dir)
        if request is None:
            _write_manifest(folder)
        else:
            # Before the trainer adds its own, which move the tracker file.
            steps = [*request.finalize_fns, functools.partial(_write_manifest, folder)]
            request.finalize_fns[:] = [_telling(step, folder) for step in steps]
        return request

    return save


def _write_manifest(folder: Path) -> None:
    import torch

    if torch.distributed.get_rank() == 0:
        write_manifest(folder)


def _telling(step: Callable[[], None], folder: Path) -> Callable[[], None]:
    def run() -> None:
        with _told(folder):
            step()

    return run


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Turn a failure to write a checkpoint into a `UserError`, and remove what was written of it."""
    import torch
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        # Raised on all ranks together; the details are on one, often lost in a writer.
        reason = write_fault(folder.parent) or "a writer failed, the log of its rank tells why"
        torch.distributed.barrier()
        if torch.distributed.get_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
        torch.distributed.barrier()
        raise _not_saved(folder, reason) from error
    except OSError as error:
        raise _not_saved(folder, error.strerror or str(error)) from error


def _not_saved(folder: Path, reason: str) -> UserError:
    iteration = folder.name.removeprefix("iter_").lstrip("0")
    return UserError(
        f"the checkpoint of iteration {iteration} could not be written to {folder.parent}: {reason}. "
        "Earlier checkpoints are untouched: start again to resume from the newest one."
    )


def write_fault(directory: Path) -> str:
    """Return why no file can be written to a directory now ("No space left on device"), else empty."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return ""


PATCHES = (
    Patch(
        "megatron.training.training:save_checkpoint",
        _start_clean,
        "Files of an interrupted save stay in the folder; saves may overlap; a full disk is a traceback.",
        "worker",
        until="the engine starts from an empty folder, one save at a time, and tells failures in one line",
    ),
    Patch(
        "megatron.core.dist_checkpointing:save",
        _seal,
        "Nothing says afterwards whether a checkpoint folder is whole.",
        "worker",
        until="the trainer verifies checkpoints before it loads one",
    ),
)
