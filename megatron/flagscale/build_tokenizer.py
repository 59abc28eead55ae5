"""Build the engine's tokenizer from the files that the arguments name, with the end of documents they name.

`GPT2BPETokenizer` with `vocab_file` and `merge_file` opens `gpt2` on Hugging Face's hub: without a network,
the run ends; with one, the files are silently ignored, because `gpt2` has a tokenizer.json (transformers 5).
Here the two files are the tokenizer. Special tokens follow them in the order given, as in FlagScale v0.6.0's
AquilaTokenizerFS.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flagscale.checks.vocabulary import END_OF_DOCUMENT, EOD, OF_FILES
from flagscale.errors import UserError
from megatron.flagscale.patching import Patch


def _from_named_files(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def build_tokenizer(args: Any, **named: Any) -> Any:
        if args.tokenizer_type != OF_FILES and getattr(args, END_OF_DOCUMENT) is None:
            return original(args, **named)
        from megatron.core.tokenizers.text.libraries import huggingface_tokenizer as library

        opened = library.AutoTokenizer
        library.AutoTokenizer = _Opener(opened, args)
        try:
            return original(args, **named)
        except ValueError as error:  # the engine's, about whatever went wrong
            if isinstance(error.__context__, UserError):
                raise error.__context__ from None
            raise
        finally:
            library.AutoTokenizer = opened

    return build_tokenizer


class _Opener:
    """Stands in for transformers' `AutoTokenizer` while the engine opens one tokenizer."""

    def __init__(self, auto: Any, args: Any) -> None:
        self._auto, self._args = auto, args

    def from_pretrained(self, *positional: Any, **named: Any) -> Any:
        args = self._args
        if args.tokenizer_type == OF_FILES:
            tokenizer = from_files(args.vocab_file, args.merge_file, args.special_tokens or [])
        else:
            tokenizer = self._auto.from_pretrained(*positional, **named)
        eod = getattr(args, END_OF_DOCUMENT) or (
            EOD if args.tokenizer_type == OF_FILES else tokenizer.eos_token
        )
        if eod not in tokenizer.get_vocab():
            raise UserError(f"`{END_OF_DOCUMENT}`: the tokenizer has no token {eod!r}")
        tokenizer.eos_token = eod
        return tokenizer


def from_files(vocab_file: str, merge_file: str, special_tokens: list[str]) -> Any:
    """Return transformers' byte-level BPE of these files; only the special tokens are special in a text."""
    from transformers import GPT2Tokenizer

    none = dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"))
    tokenizer = GPT2Tokenizer(vocab=vocab_file, merges=merge_file, **none)
    tokenizer.add_special_tokens({"additional_special_tokens": special_tokens})
    return tokenizer


PATCHES = (
    Patch(
        "megatron.training.global_vars:build_tokenizer",
        _from_named_files,
        "GPT2BPETokenizer ignores its files and opens `gpt2` on a hub, and no argument names the token that "
        "ends a document.",
        "worker",
        until="GPT2BPETokenizer reads its files",
    ),
)
