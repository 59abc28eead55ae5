"""Which checkpoint a run resumes from, and what makes a finished save a checkpoint.

A checkpoint is complete or it is not there. After a save rank 0 writes a manifest (see manifest.py); before a
load it picks the newest folder that is whole, says so when that is not the newest one, and clears what an
interrupted save left.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flagscale.errors import UserError
from megatron.flagscale.manifest import TRACKER, Candidate, candidates, write_atomically, write_manifest
from megatron.flagscale.patches import Patch

_PROBE_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class Choice:
    """The checkpoint to load (none when the run starts anew), and what to tell about how it was chosen."""

    iteration: int | None
    notices: tuple[str, ...] = ()


def choose(directory: Path, owned: bool, wanted: int | None = None) -> Choice:
    """Choose the newest usable checkpoint of a directory, or the `wanted` iteration.

    In a directory this run also saves to (`owned`), unfinished folders newer than the choice are removed,
    damaged ones are set aside under another name, and the tracker file is made to agree. `UserError` when
    there are checkpoints but none can be used: starting over would overwrite them.
    """
    if (directory / TRACKER).is_file() and (directory / TRACKER).read_text().strip() == "release":
        return Choice(None)
    rejected: list[Candidate] = []
    for candidate in candidates(directory):
        if wanted is not None and candidate.iteration != wanted:
            continue
        if candidate.usable:
            if owned and wanted is None:
                notices = [_set_aside(other.path, other.fault, other.unfinished) for other in rejected]
                _point_at(directory, candidate.iteration)
            else:
                notices = [f"checkpoint {other.path} is not used: {other.fault}" for other in rejected]
            if any(not other.unfinished for other in rejected):
                notices.append(f"falling back to the complete checkpoint of iteration {candidate.iteration}")
            return Choice(candidate.iteration, tuple(notices))
        rejected.append(candidate)
    damaged = [candidate for candidate in rejected if not candidate.unfinished]
    if wanted is not None:
        reason = f": {damaged[0].fault}" if damaged else " (not there, or not saved to the end)"
        raise UserError(f"the checkpoint of iteration {wanted} in {directory} cannot be used{reason}")
    if damaged or (directory / TRACKER).is_file():
        told = (
            "; ".join(f"{candidate.path.name}: {candidate.fault}" for candidate in rejected)
            or "no folder is left"
        )
        raise UserError(
            f"no checkpoint in {directory} can be used ({told}). To start over, move this folder away."
        )
    if owned:
        return Choice(None, tuple(_set_aside(other.path, other.fault, True) for other in rejected))
    return Choice(None)


def _set_aside(folder: Path, fault: str, unfinished: bool) -> str:
    if unfinished:
        shutil.rmtree(folder)
        return f"removed {folder}: {fault}"
    spare = folder.with_name(f"{folder.name}.damaged")
    if spare.exists():
        shutil.rmtree(spare)
    folder.rename(spare)
    return f"checkpoint {folder} is damaged ({fault}); kept as {spare.name}"


def _point_at(directory: Path, iteration: int) -> None:
    tracker = directory / TRACKER
    if not tracker.is_file() or tracker.read_text().strip() != str(iteration):
        write_atomically(tracker, str(iteration))


def prepare_load(args: Any) -> None:
    """Before the trainer loads: rank 0 chooses, all agree; `UserError` on all when nothing is usable."""
    import torch

    if args.load is None or args.ckpt_format != "torch_dist":
        return
    answer: list[Any] = [None]
    if torch.distributed.get_rank() == 0:
        owned = args.save is not None and Path(args.save).resolve() == Path(args.load).resolve()
        try:
            answer[0] = choose(Path(args.load), owned, args.ckpt_step)
            for notice in answer[0].notices:
                print(f"flagscale: {notice}", flush=True)
        except (UserError, OSError) as error:
            answer[0] = error
    torch.distributed.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], OSError):
        raise UserError(f"the checkpoints in {args.load} cannot be read: {answer[0]}")
    if isinstance(answer[0], Exception):
        raise answer[0]
    args.ckpt_step = answer[0].iteration


def _choose_before_loading(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_checkpoint(*positional: Any, **named: Any) -> Any:
        from megatron.training import get_args

        args = get_args()
        prepare_load(args)
        if (
            args.ckpt_step is not None
            and args.train_iters
            and args.ckpt_step >= args.train_iters
            and not args.finetune
        ):
            if args.rank == 0:
                done = f"iteration {args.ckpt_step} of {args.train_iters} is in {args.load}"
                print(f"flagscale: nothing left to do: {done}")
            sys.exit(0)
        return original(*positional, **named)

    return load_checkpoint


def _seal_after_saving(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def save_checkpoint(iteration: int, *positional: Any, **named: Any) -> Any:
        import torch
        from megatron.training import get_args
        from torch.distributed.checkpoint.api import CheckpointException

        args = get_args()
        if named.get("non_persistent_ckpt"):
            return original(iteration, *positional, **named)
        folder = Path(args.save) / f"iter_{iteration:07d}"
        first = torch.distributed.get_rank() == 0
        try:
            if first and folder.exists():
                shutil.rmtree(folder)
            outcome = original(iteration, *positional, **named)
            if first and args.ckpt_format == "torch_dist":
                write_manifest(folder)
        except CheckpointException as error:
            # Raised on all ranks together; the details are on one, often lost in a writer thread.
            reason = write_fault(folder.parent) or "a writer failed, the log of its rank tells why"
            torch.distributed.barrier()
            if first:
                shutil.rmtree(folder, ignore_errors=True)
            torch.distributed.barrier()
            raise _not_saved(iteration, args.save, reason) from error
        except OSError as error:
            raise _not_saved(iteration, args.save, error.strerror or str(error)) from error
        return outcome

    return save_checkpoint


def _not_saved(iteration: int, directory: str, reason: str) -> UserError:
    return UserError(
        f"the checkpoint of iteration {iteration} could not be written to {directory}: {reason}. "
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
        "megatron.training.training:load_checkpoint",
        _choose_before_loading,
        "It trusts the tracker file: a damaged newest checkpoint ends the run though an older one is whole.",
        "worker",
        until="the trainer verifies checkpoints before it loads one",
    ),
    Patch(
        "megatron.training.training:save_checkpoint",
        _seal_after_saving,
        "Nothing says afterwards whether a checkpoint folder is whole.",
        "worker",
        until="as above",
    ),
)
