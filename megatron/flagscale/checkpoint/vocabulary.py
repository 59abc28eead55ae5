"""Compare the vocabulary of a run with that of the checkpoint that it loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flagscale.errors import UserError


def check_padding(folder: Path, saved: int | None, args: Any) -> None:
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


def check_tokens(folder: Path, saved: int | None) -> None:
    """Raise `UserError` if the tokenizer has tokens that a base (of `saved` tokens) does not have."""
    from megatron.training.global_vars import get_tokenizer

    if saved is not None and (size := get_tokenizer().vocab_size) > saved:
        what = f"the base {folder} has {saved} tokens, but the tokenizer has {size}"
        raise UserError(f"{what}, and adapters do not train embeddings: use the tokenizer of the base")
