"""Loss masks in a pair of their own, beside the text that they belong to.

`<x>_text_document` holds token ids, `<x>_loss_mask_document` a number for each of them: not 0 if the model
learns to write this token. FlagScale v0.6.0 had the same names.
"""

from __future__ import annotations

from pathlib import Path

from flagscale.checks.indexed import bin_path, idx_path, lengths, problems

TEXT, MASKS = "_text_document", "_loss_mask_document"
_CHUNK = 1 << 22


def mask_prefix(prefix: Path) -> Path | None:
    """Return the prefix of the masks of a text; None if its name does not end with `TEXT`."""
    if not prefix.name.endswith(TEXT):
        return None
    return prefix.with_name(prefix.name.removesuffix(TEXT) + MASKS)


def has_masks(prefix: Path) -> bool:
    """Return whether a text has masks beside it; one file of the two is enough, which others report."""
    masks = mask_prefix(prefix)
    return masks is not None and (idx_path(masks).exists() or bin_path(masks).exists())


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
