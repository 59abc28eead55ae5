"""Which checkpoint a run resumes from, and what makes a finished save a checkpoint.

A checkpoint is complete or it is not there. When all ranks have written, rank 0 writes a manifest (see
manifest.py), and only then the trainer's tracker file names the checkpoint; with `--async-save` this happens
between two later iterations. Before a load rank 0 picks the newest folder that is whole, says so when that is
not the newest one, and clears what an interrupted save left.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flagscale.errors import UserError
from flagscale.files import write_atomic
from megatron.flagscale import async_save
from megatron.flagscale.manifest import TRACKER, Candidate, candidates, write_manifest
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
        write_atomic(tracker, str(iteration))


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
            if answer[0].iteration is not None and not args.finetune:
                _check_vocabulary(Path(args.load) / f"iter_{answer[0].iteration:07d}", args)
        except (UserError, OSError) as error:
            answer[0] = error
    torch.distributed.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], OSError):
        raise UserError(f"the checkpoints in {args.load} cannot be read: {answer[0]}")
    if isinstance(answer[0], Exception):
        raise answer[0]
    args.ckpt_step = answer[0].iteration


def _check_vocabulary(folder: Path, args: Any) -> None:
    """Refuse to continue with another number of padding tokens: `UserError`.

    The engine pads the vocabulary to a multiple that grows with tensor parallelism, and cuts or fills the
    saved weights silently. But padding tokens take part in the softmax: the loss would jump.
    """
    from megatron.core.dist_checkpointing.serialization import load_common_state_dict
    from megatron.training.global_vars import get_tokenizer

    saved = getattr(load_common_state_dict(str(folder)).get("args"), "padded_vocab_size", None)
    if saved in (None, args.padded_vocab_size):
        return
    what = f"{folder} was saved with {saved} token rows, this run has {args.padded_vocab_size}"
    if get_tokenizer().vocab_size > saved:
        raise UserError(f"{what}: the tokenizer is another one. Add --finetune to go on with it.")
    if saved % args.tensor_model_parallel_size:
        raise UserError(f"{what}: choose a tensor parallel size that divides {saved}.")
    multiple = saved // args.tensor_model_parallel_size
    raise UserError(f"{what}: set --make-vocab-size-divisible-by {multiple}.")


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
        "megatron.training.training:load_checkpoint",
        _choose_before_loading,
        "It trusts the tracker file: a damaged newest checkpoint ends the run though an older one is whole.",
        "worker",
        until="the trainer verifies checkpoints before it loads one",
    ),
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
    *async_save.PATCHES,
)
