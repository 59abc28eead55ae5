"""Rules for loss masks in a pair of their own, beside the text that they belong to (see mask_files.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flagscale.checks.blend import OBJECT_STORAGE, named_files, read_lists
from flagscale.checks.indexed import bin_path, lengths, problems
from flagscale.checks.mask_files import SEPARATE, TEXT, has_masks, mask_prefix
from flagscale.errors import Violation

_CHUNK = 1 << 22


def mask_problem(prefix: Path) -> str:
    """Return why the masks of a sound text, if it has any, cannot be used; "" if they can."""
    masks = mask_prefix(prefix)
    if masks is None or not has_masks(prefix):
        return ""
    if found := problems(masks):
        return found[0]
    tokens, values = lengths(prefix), lengths(masks)
    if len(tokens) != len(values):
        return f"{masks}: has {len(values):,} documents, but {prefix} has {len(tokens):,}: make both again"
    if tokens != values:
        first = next(number for number, token in enumerate(tokens) if token != values[number])
        what = f"{masks}: document {first} has {values[first]:,} masks for {tokens[first]:,} tokens"
        return f"{what} of {prefix}: make both again"
    if not _has_learnt(bin_path(masks)):
        return f"{masks}: no token is learnt: every mask is 0"
    return ""


def _has_learnt(path: Path) -> bool:
    """Return whether any byte of a file is not 0: usually among the first ones."""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            if chunk.count(0) < len(chunk):
                return True
    return False


def separate_violations(values: Mapping[str, Any], cwd: Path = Path()) -> Iterator[Violation]:
    """Yield the masks that `train_gpt` would read with `SEPARATE`, but that do not fit their text."""
    if values.get(SEPARATE):
        yield from remote_violations(values, cwd)
        for name, prefix in named_files(values, cwd):
            if not problems(prefix) and (what := mask_problem(prefix)):
                yield name, what


def separate_remarks(values: Mapping[str, Any], cwd: Path = Path()) -> Iterator[Violation]:
    """Yield the data without masks, all of whose tokens are learnt with `SEPARATE`."""
    if values.get(SEPARATE):
        for name, prefix in named_files(values, cwd):
            if not has_masks(prefix):
                masks = mask_prefix(prefix)
                missing = f"{masks} does not exist" if masks else f"its name does not end with `{TEXT}`"
                yield name, f"{prefix} has no loss masks ({missing}): all of its tokens are learnt"


def remote_violations(values: Mapping[str, Any], cwd: Path = Path()) -> Iterator[Violation]:
    """Yield data in object storage, whose masks are not looked for."""
    for (name, _), words in read_lists(values, cwd)[0].items():
        for word in words:
            if word.startswith(OBJECT_STORAGE):
                yield name, f"{word}: loss masks are read from files only: copy both pairs to a folder"
