"""Load the checkpoint that was chosen (`resume`), instead of the one that the engine would choose."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flagscale.errors import UserError
from flagscale.run.checkpoints import RELEASE
from flagscale.run.manifest import is_torch_format
from megatron.flagscale.checkpoint.resume import CONSUMED_TOKENS, taken
from megatron.flagscale.checkpoint.torch_format import check_names
from megatron.flagscale.checkpoint.with_optimizer import is_start, load_with_optimizer
from megatron.flagscale.patching import Patch
from megatron.flagscale.steering.bad_loss import RECENT


def _choose_before_loading(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_checkpoint(model: Any, *positional: Any, **named: Any) -> Any:
        from megatron.training import get_args

        args = get_args()
        found = taken(args)
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
