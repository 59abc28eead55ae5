"""Save checkpoints so that each one is either complete or absent.

When all ranks have written their files, rank 0 writes a manifest (`flagscale.run.manifest`). Only then does
the trainer's tracker file name the checkpoint; with `--async-save` this happens between two later iterations.
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
from flagscale.run.checkpoints import folder_of
from flagscale.run.manifest import write_manifest
from megatron.flagscale.checkpoint.additions import write_additions
from megatron.flagscale.checkpoint.arguments import store
from megatron.flagscale.checkpoint.retention import remove_old
from megatron.flagscale.checkpoint.torch_format import TORCH
from megatron.flagscale.patching import Patch

_PROBE_BYTES = 8 * 1024 * 1024


def _start_clean(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def save_checkpoint(iteration: int, *positional: Any, **named: Any) -> Any:
        import torch
        from megatron.training import get_args, training

        # One save at a time: two at once would mix up the results of their writers and need twice the memory.
        training.maybe_finalize_async_save(blocking=True)
        args = get_args()
        if named.get("non_persistent_ckpt"):
            return original(iteration, *positional, **named)
        folder = Path(args.save) / folder_of(iteration)
        with _failing_as_user_error(folder):
            if torch.distributed.get_rank() == 0 and folder.exists():
                shutil.rmtree(folder)
            torch.distributed.barrier()  # in the `torch` format, every rank creates its own folder
            saved = original(iteration, *positional, **named)
            if args.ckpt_format == TORCH:  # not written by `dist_checkpointing.save`
                write_additions(folder)
                _write_manifest(folder)
            if not args.async_save:
                remove_old(args)
            return saved

    return save_checkpoint


def _seal(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def save(state_dict: Any, checkpoint_dir: str, *positional: Any, **named: Any) -> Any:
        """Return the engine's result: None, or the request whose `finalize_fns` run after the writing."""
        request = original(state_dict, checkpoint_dir, *positional, **named)
        folder = Path(checkpoint_dir)
        write_additions(folder)  # now, not when the writing is finished: the data goes on meanwhile
        if request is None:
            _write_manifest(folder)
        else:
            # They run before the trainer's own, which update the tracker file.
            steps = [*request.finalize_fns, functools.partial(_write_manifest, folder)]
            request.finalize_fns[:] = [_with_user_errors(step, folder) for step in steps]
        return request

    return save


def _write_manifest(folder: Path) -> None:
    import torch
    from megatron.training import get_args

    if torch.distributed.get_rank() == 0:
        store(folder, get_args())
        write_manifest(folder)


def _with_user_errors(step: Callable[[], None], folder: Path) -> Callable[[], None]:
    def run() -> None:
        with _failing_as_user_error(folder):
            step()

    return run


@contextlib.contextmanager
def _failing_as_user_error(folder: Path) -> Iterator[None]:
    """Turn a failure to write a checkpoint into a `UserError`, and remove the files of a failed writer."""
    import torch
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        # All ranks raise it together; one of them has the details, which are often lost in its writer.
        reason = write_fault(folder.parent) or "a writer process failed; see the log of its rank"
        torch.distributed.barrier()
        if torch.distributed.get_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
        torch.distributed.barrier()
        raise _not_saved(folder, reason) from error
    except RuntimeError as error:
        # `torch.save`, with which the `torch` format is written, does not report the reason.
        if not (reason := write_fault(folder.parent)):
            raise
        shutil.rmtree(folder, ignore_errors=True)
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
    """Return why a directory is not writable now ("No space left on device"), or an empty string."""
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
        "Files of an interrupted save stay in the folder; saves may overlap; a full disk gives a traceback.",
        "worker",
        until="the engine saves to an empty folder, one save at a time, and reports failures in one line",
    ),
    Patch(
        "megatron.core.dist_checkpointing:save",
        _seal,
        "It leaves no record of whether a checkpoint folder is complete.",
        "worker",
        until="the trainer verifies checkpoints before it loads one",
    ),
)
