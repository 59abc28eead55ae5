"""Choose the checkpoint that a run resumes from.

The trainer loads the checkpoint that its tracker file names. Here rank 0 first chooses the newest complete
one (see `flagscale.run.manifest`), reports if newer ones are damaged, and removes what an interrupted save
left.
"""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flagscale.checks.lora import trains_adapters
from flagscale.checks.resume import STRICT
from flagscale.errors import UserError
from flagscale.files import write_atomic
from flagscale.run.checkpoints import TRACKER, folder_of, tracked
from flagscale.run.manifest import (
    RELEASE,
    Candidate,
    candidates,
    fault_of,
    is_torch_format,
)
from megatron.flagscale.checkpoint.arguments import compare, remember_base
from megatron.flagscale.checkpoint.base import base_folder, identity
from megatron.flagscale.checkpoint.torch_format import (
    TORCH,
    TORCH_DIST,
    check_layout,
    check_names,
    saved_arguments,
)
from megatron.flagscale.checkpoint.with_optimizer import check_state, is_start, load_with_optimizer
from megatron.flagscale.patching import Patch
from megatron.flagscale.steering.bad_loss import RECENT

CONSUMED_TOKENS = "consumed_train_tokens"
"""The argument, saved with all others, that holds the tokens of a run whose samples differ in length."""


@dataclass(frozen=True)
class Choice:
    """The checkpoint to load (None to start from scratch), and the notices to print about the choice."""

    iteration: int | None
    notices: tuple[str, ...] = ()


def choose(directory: Path, owned: bool, wanted: int | None = None) -> Choice:
    """Choose the newest usable checkpoint of a directory, or the `wanted` iteration.

    In a directory this run also saves to (`owned`), unfinished folders newer than the choice are removed,
    damaged ones are renamed, and the tracker file is updated. Raises `UserError` if there are checkpoints but
    none can be used: starting over would overwrite them.
    """
    if tracked(directory) == RELEASE:
        if fault := fault_of(directory / RELEASE):
            raise UserError(f"the checkpoint {directory / RELEASE} cannot be used: {fault}")
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
        reason = rejected[0].fault if rejected else "not found"
        raise UserError(f"the checkpoint of iteration {wanted} in {directory} cannot be used: {reason}")
    # In the `torch` format, nothing but the tracker shows whether a checkpoint is complete.
    unknown = not owned and any(is_torch_format(candidate.path) for candidate in rejected)
    if damaged or unknown or (directory / TRACKER).is_file():
        reported = (
            "; ".join(f"{candidate.path.name}: {candidate.fault}" for candidate in rejected)
            or "no checkpoint folder found"
        )
        raise UserError(
            f"no checkpoint in {directory} can be used ({reported}). To start over, move this folder away."
        )
    if owned:
        return Choice(None, tuple(_set_aside(other.path, other.fault, True) for other in rejected))
    return Choice(None)


def _set_aside(folder: Path, fault: str, unfinished: bool) -> str:
    if unfinished and not is_torch_format(folder):
        shutil.rmtree(folder)
        return f"removed {folder}: {fault}"
    # In the `torch` format, a tracker that was set back or left out looks the same as an unfinished save.
    state = "unfinished" if unfinished else "damaged"
    spare = folder.with_name(f"{folder.name}.{state}")
    if spare.exists():
        shutil.rmtree(spare)
    folder.rename(spare)
    return f"checkpoint {folder} is {state} ({fault}); renamed to {spare.name}"


def _point_at(directory: Path, iteration: int) -> None:
    if tracked(directory) != str(iteration):
        write_atomic(directory / TRACKER, str(iteration))


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
        _check_vocabulary(folder, vocabulary, args)
    if is_base:
        _check_tokens(folder, vocabulary)
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


def _check_vocabulary(folder: Path, saved: int | None, args: Any) -> None:
    """Raise `UserError` if the run has a different number of padding tokens than the checkpoint (`saved`).

    The engine pads the vocabulary to a multiple that grows with tensor parallelism, and silently cuts or
    fills the saved weights. But padding tokens take part in the softmax, so the loss would jump.
    """
    from megatron.training.global_vars import get_tokenizer

    if saved in (None, args.padded_vocab_size):
        return
    what = f"{folder} has a padded vocabulary of {saved} tokens, but this run has {args.padded_vocab_size}"
    if get_tokenizer().vocab_size > saved:
        raise UserError(
            f"{what}: the tokenizer is different. With `finetune: true` a new training starts from it."
        )
    if saved % args.tensor_model_parallel_size:
        raise UserError(f"{what}: choose a tensor parallel size that divides {saved}.")
    multiple = saved // args.tensor_model_parallel_size
    raise UserError(f"{what}: set `make_vocab_size_divisible_by: {multiple}`.")


def _check_tokens(folder: Path, saved: int | None) -> None:
    """Raise `UserError` if the tokenizer has tokens that a base (of `saved` tokens) does not have."""
    from megatron.training.global_vars import get_tokenizer

    if saved is not None and (size := get_tokenizer().vocab_size) > saved:
        what = f"the base {folder} has {saved} tokens, but the tokenizer has {size}"
        raise UserError(f"{what}, and adapters do not train embeddings: use the tokenizer of the base")


def _choose_before_loading(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_checkpoint(model: Any, *positional: Any, **named: Any) -> Any:
        from megatron.training import get_args

        args = get_args()
        found = _prepared.pop() if _prepared else prepare_load(args)
        folder = found.folder
        setattr(args, CONSUMED_TOKENS, found.tokens)
        setattr(args, RECENT, [*found.losses])
        is_new = is_start(folder, args)
        if (
            args.ckpt_step is not None
            and args.train_iters
            and args.ckpt_step >= args.train_iters
            and not args.finetune
            and not is_new
        ):
            if args.rank == 0:
                done = f"{args.load} already contains iteration {args.ckpt_step} of {args.train_iters}"
                print(f"flagscale: nothing left to do: {done}")
            sys.exit(0)
        if found.base is not None:
            if folder is None:
                return 0, 0  # the base is loaded, and its adapters are new
            named["strict"] = False  # the checkpoint has no other weights
        load = functools.partial(load_with_optimizer, original, folder) if is_new and folder else original
        if folder is None or not is_torch_format(folder):
            return load(model, *positional, **named)
        _check_own_file(folder, model)
        try:
            return load(model, *positional, **named)
        except SystemExit:
            # The engine prints the reason, and would end the run with exit code 0.
            raise UserError(f"{folder}: the checkpoint could not be loaded; see the output above") from None

    return load_checkpoint


def _check_own_file(folder: Path, model: Any) -> None:
    """Check the tensors of this rank's file in a checkpoint in the `torch` format."""
    from megatron.core.utils import unwrap_model
    from megatron.training.checkpointing import get_checkpoint_name

    number = folder.name.removeprefix("iter_")
    named = {"release": True} if folder.name == RELEASE else {}
    file = get_checkpoint_name(str(folder.parent), 0 if named else int(number), **named)
    check_names(Path(file), unwrap_model(model))


def _compare_the_padded_size_only(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def check(checkpoint_args: Any, skip_args: set[str] | None = None) -> None:
        original(checkpoint_args, {*(skip_args or ()), "make_vocab_size_divisible_by"})

    return check


PATCHES = (
    Patch(
        "megatron.training.training:load_checkpoint",
        _choose_before_loading,
        "It trusts the tracker file: if the newest checkpoint is damaged, the run ends despite older ones.",
        "worker",
        until="the trainer verifies checkpoints before it loads one",
    ),
    Patch(
        "megatron.training.checkpointing:check_checkpoint_args",
        _compare_the_padded_size_only,
        "With a vocabulary file it requires the same padding multiple, which gives a different padded size "
        "with another tensor parallel size. Only the padded size has to stay the same, and it is compared.",
        "worker",
        until="it compares the padded size for every tokenizer",
    ),
)
