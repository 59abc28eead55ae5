"""Which checkpoint a run resumes from.

The trainer loads what its tracker file names. Here rank 0 first picks the newest folder that is whole (see
manifest.py), says so when that is not the newest one, and clears what an interrupted save left.
"""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flagscale.errors import UserError
from flagscale.files import write_atomic
from megatron.flagscale.checkpoint.manifest import TRACKER, Candidate, candidates, fault_of
from megatron.flagscale.patching import Patch


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
        if fault := fault_of(directory / "release"):
            raise UserError(f"the checkpoint {directory / 'release'} cannot be used: {fault}")
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


def _compare_the_padded_size_only(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def check(checkpoint_args: Any, skip_args: set[str] | None = None) -> None:
        original(checkpoint_args, {*(skip_args or ()), "make_vocab_size_divisible_by"})

    return check


PATCHES = (
    Patch(
        "megatron.training.training:load_checkpoint",
        _choose_before_loading,
        "It trusts the tracker file: a damaged newest checkpoint ends the run though an older one is whole.",
        "worker",
        until="the trainer verifies checkpoints before it loads one",
    ),
    Patch(
        "megatron.training.checkpointing:check_checkpoint_args",
        _compare_the_padded_size_only,
        "With a vocabulary file it wants the same multiple for padding, which with another tensor parallel "
        "size gives another padded size; that one has to stay, and is compared.",
        "worker",
        until="it compares the padded size for every tokenizer",
    ),
)
