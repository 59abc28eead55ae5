"""Choose the checkpoint that a run loads, and compare it with the run.

The trainer loads the checkpoint that its tracker file names. Here rank 0 first chooses the newest complete
one (see `flagscale.run.manifest`), and reports if newer ones are damaged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flagscale.checks.lora import trains_adapters
from flagscale.checks.recorded import STRICT
from flagscale.errors import UserError
from flagscale.run.base import base_folder, identity
from flagscale.run.checkpoints import RELEASE, TRACKER, folder_of, tracked
from flagscale.run.manifest import is_torch_format
from megatron.flagscale.checkpoint.arguments import compare, remember_base
from megatron.flagscale.checkpoint.choice import Choice, choose
from megatron.flagscale.checkpoint.torch_format import (
    TORCH,
    TORCH_DIST,
    check_layout,
    saved_arguments,
)
from megatron.flagscale.checkpoint.vocabulary import check_padding, check_tokens
from megatron.flagscale.checkpoint.with_optimizer import check_state, is_start
from megatron.flagscale.steering.bad_loss import RECENT

CONSUMED_TOKENS = "consumed_train_tokens"
"""The argument, saved with all others, that holds the tokens of a run whose samples differ in length."""


@dataclass(frozen=True)
class Load:
    """The folder of the checkpoint to load, None without one; whether it replaces all initial weights.

    `tokens` are those that a run with samples of different lengths has counted before, if it is continued.
    `base` is the folder of the base that a run with adapters loads before them; `is_whole` is then about it.
    """

    folder: Path | None = None
    is_whole: bool = False
    tokens: int = 0
    base: Path | None = None
    losses: tuple[float, ...] = ()
    """The last losses before the checkpoint, if the run that saved it judged them."""


_prepared: list[Load] = []
"""What was chosen before the model got its initial weights, until it is loaded."""


def weights_will_be_loaded(args: Any) -> bool:
    """Choose the checkpoint early, and return whether it replaces all initial weights.

    All ranks have to call it together. Raises `UserError` as `prepare_load` does.
    """
    if not (args.load or args.pretrained_checkpoint) or args.moe_use_upcycling or args.use_torch_fsdp2:
        return False
    _prepared[:] = [prepare_load(args)]
    return _prepared[0].is_whole


def prepared(args: Any) -> Load:
    """Return what was chosen before the model got its initial weights; choose it if that was not needed.

    All ranks have to call it together. Raises `UserError` as `prepare_load` does.
    """
    if not _prepared:
        _prepared.append(prepare_load(args))
    return _prepared[0]


def taken(args: Any) -> Load:
    """Return the same for the load itself; a later load chooses again."""
    found = prepared(args)
    _prepared.clear()
    return found


def prepare_load(args: Any) -> Load:
    """Choose on rank 0, for all ranks, the checkpoint to load.

    Raises:
        UserError: on all ranks, if no checkpoint is usable, or if this run cannot load the chosen one.
    """
    import torch

    if args.ckpt_format not in (TORCH, TORCH_DIST):
        return Load()
    answer: list[Any] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            answer[0] = _chosen(args)
        except (UserError, OSError) as error:
            answer[0] = error
    torch.distributed.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], OSError):
        raise UserError(f"the checkpoints in {args.load} cannot be read: {answer[0]}")
    if isinstance(answer[0], Exception):
        raise answer[0]
    chosen: Load = answer[0][0]
    if args.load is not None:
        args.ckpt_step = answer[0][1]
    return chosen


def _chosen(args: Any) -> tuple[Load, int | None]:
    """Return what the engine will load, and its iteration in `args.load`; None without one."""
    choice, base = Choice(None), None
    if trains_adapters(vars(args)):
        base = _base(args)
    if args.load is not None:
        owned = args.save is not None and Path(args.save).resolve() == Path(args.load).resolve()
        choice = choose(Path(args.load), owned, args.ckpt_step)
        for notice in choice.notices:
            print(f"flagscale: {notice}", flush=True)
    folder = _folder(args, choice)
    if folder is None:
        return base or Load(), choice.iteration
    found = _loadable(folder, args, is_own=folder.parent == Path(args.load or ""))
    if base is not None:
        found = replace(found, is_whole=base.is_whole, base=base.base)
    return found, choice.iteration


def _base(args: Any) -> Load:
    """Return the base of a run that trains adapters; raise `UserError` if it cannot be used."""
    folder = base_folder(Path(args.pretrained_checkpoint))
    remember_base(identity(folder))
    found = _loadable(folder, args, is_own=False, is_base=True)
    return Load(is_whole=found.is_whole, base=folder)


def _folder(args: Any, choice: Choice) -> Path | None:
    """Return the folder that the engine loads: the choice in `load`, or else `pretrained_checkpoint`.

    Adapters have only `load`: what they are loaded into is the base.
    """
    if choice.iteration is not None:
        return Path(args.load) / folder_of(choice.iteration)
    others = () if trains_adapters(vars(args)) else (args.pretrained_checkpoint,)
    for directory in map(Path, filter(None, (args.load, *others))):
        if named := tracked(directory):
            return directory / (folder_of(int(named)) if named.isdigit() else named)
    return None


def _loadable(folder: Path, args: Any, *, is_own: bool, is_base: bool = False) -> Load:
    """Compare a checkpoint with this run, print notices, and return what is known before it is loaded.

    Raises:
        UserError: this run cannot load it.
    """
    is_new = is_start(folder, args)
    resumes = is_own and folder.name != RELEASE and not args.finetune and not is_new
    if is_torch_format(folder):
        saved = saved_arguments(folder)
        check_layout(folder, saved, args, needs_optimizer=resumes or is_new)
    elif args.ckpt_format == TORCH:
        what = (
            f"{folder} is not in Megatron's `{TORCH}` format, and a run with `ckpt_format: {TORCH}` can load"
        )
        raise UserError(f"{what} no other: set `ckpt_format: {TORCH_DIST}`, or remove the key")
    else:
        saved = _saved_arguments(folder)
    if is_new:
        check_state(folder, saved)
    if resumes and saved.get("no_save_optim") and not args.no_load_optim:
        what = f"{folder} has no state of an optimizer, because it was saved with `no_save_optim`"
        raise UserError(f"{what}: set `no_load_optim: true` to continue without it")
    for notice in compare(folder, args, saved, resumes=resumes, is_base=is_base):
        print(f"flagscale: {notice}", flush=True)
    vocabulary = saved.get("padded_vocab_size")
    if resumes or is_new:
        check_padding(folder, vocabulary, args)
    if is_base:
        check_tokens(folder, vocabulary)
    # Otherwise the engine may keep initial values: of padding tokens, or of tensors that it does not find.
    is_whole = vocabulary == args.padded_vocab_size and args.dist_ckpt_strictness in STRICT
    if not resumes:
        return Load(folder, is_whole)
    return Load(folder, is_whole, saved.get(CONSUMED_TOKENS, 0), losses=tuple(saved.get(RECENT, ())))


def _saved_arguments(folder: Path) -> dict[str, Any]:
    """Return the engine's arguments in a checkpoint; raise `UserError` if it cannot be read."""
    from megatron.core.dist_checkpointing.serialization import load_common_state_dict

    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint, although {folder.parent / TRACKER} names it")
    try:
        found = load_common_state_dict(str(folder)).get("args")
    except Exception as error:  # the engine's own, and those of a damaged file
        raise UserError(f"{folder}: its arguments cannot be read: {error}") from error
    return dict(vars(found)) if found else {}
