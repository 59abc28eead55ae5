"""Check the loss masks beside a pair of text: each value, and that each conversation has answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flagscale.checks import indexed
from flagscale.checks.facts import facts
from flagscale.checks.loss_masks import mask_problem
from flagscale.checks.mask_files import has_masks, mask_prefix

_MOST_TOKENS = 1 << 24
"""That are read at a time."""


def problems_of_masks(prefix: Path) -> list[str]:
    """Return what is wrong with the loss masks of a sound pair; empty if it has none and needs none."""
    masks = mask_prefix(prefix)
    if masks is None or not has_masks(prefix):
        known = facts(prefix) or {}
        missing = f"{prefix}: its facts name conversations, but {masks} does not exist; make both again"
        return [missing] if known.get("conversations") else []
    if found := indexed.problems(masks, thorough=True):
        return found
    if what := mask_problem(prefix):
        return [what]
    problems = []
    odd = (seen[(seen != 0) & (seen != 1)] for _, seen in _values(masks))
    if (value := next((int(one[0]) for one in odd if one.size), None)) is not None:
        problems.append(f"{masks}: has the value {value}; a mask is 0 or 1")
    if unlearnt := [number for number, learnt in enumerate(_learnt(masks)) if not learnt]:
        lacking = f"{masks}: {len(unlearnt):,} conversation(s) without a token that is learnt"
        problems.append(f"{lacking}, document {unlearnt[0]} is the first")
    return problems


def masks_of(prefix: Path) -> str:
    """Return how many tokens of a valid pair of text are learnt, if it has loss masks; else ""."""
    masks = mask_prefix(prefix)
    if masks is None or not has_masks(prefix):
        return ""
    return f", {sum(_learnt(masks)):,} of them learnt"


def _learnt(masks: Path) -> Iterator[int]:
    """Yield the number of learnt tokens of each document."""
    for lengths, values in _values(masks):
        ends = np.cumsum(lengths)
        sums = np.concatenate([[0], np.cumsum(values != 0)])
        yield from (sums[ends] - sums[ends - lengths]).tolist()


def _values(masks: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the lengths of some documents and their values, until all are read."""
    lengths = np.asarray(indexed.lengths(masks), np.int64)
    dtype = np.dtype(indexed.summary(masks).dtype).newbyteorder("<")
    ends = np.cumsum(lengths)
    with indexed.bin_path(masks).open("rb") as file:
        first = 0
        while first < len(lengths):
            read = ends[first - 1] if first else 0
            end = max(first + 1, int(np.searchsorted(ends, read + _MOST_TOKENS, "right")))
            taken = lengths[first:end]
            yield taken, np.fromfile(file, dtype, int(taken.sum()))
            first = end
