"""The statistics of prepared conversations, as JSON and as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flagscale.checks import indexed
from tools.datasets.chats.tally import Tally
from tools.datasets.output import LOSS_MASK, TEXT, OutputFolder

_MOST_SHOWN = 3
"""Conversations that are named for each reason."""


def lengths_of(layout: OutputFolder) -> np.ndarray:
    """Return int64 `[conversations]`: the tokens of each conversation in the parts."""
    lengths = (np.asarray(indexed.lengths(prefix), np.int64) for prefix in _pairs(layout, TEXT))
    return np.concatenate([np.empty(0, np.int64), *lengths])


def learnt_of(layout: OutputFolder) -> int:
    """Return the number of tokens in the parts that are learnt."""
    files = map(indexed.bin_path, _pairs(layout, LOSS_MASK))
    return sum(int(np.count_nonzero(np.fromfile(file, np.uint8))) for file in files)


def statistics(lengths: np.ndarray, learnt: int, tally: Tally) -> dict[str, Any]:
    """Return what is known of conversations, of which there is at least one.

    Args:
        lengths: the tokens of each.
        learnt: the tokens of all of them that are learnt.
    """
    quantiles = np.quantile(lengths, (0, 0.5, 0.95, 1), method="higher").tolist()
    return {
        "conversations": len(lengths),
        "turns": dict(tally.turns.most_common()),
        "tokens": int(lengths.sum()),
        "learnt_tokens": learnt,
        "lengths": dict(zip(("min", "median", "95 %", "max"), quantiles, strict=True)),
        "left_out": {
            reason: {
                "conversations": count,
                "first": [f"{one.where}: {one.what}" for one in tally.named if one.reason == reason][
                    :_MOST_SHOWN
                ],
            }
            for reason, count in tally.left_out.most_common()
        },
    }


def lines(known: Mapping[str, Any]) -> Iterator[str]:
    """Yield the statistics as lines."""
    turns = ", ".join(f"{role} {count:,}" for role, count in known["turns"].items())
    yield f"{known['conversations']:,} conversations, {sum(known['turns'].values()):,} turns ({turns})"
    share = 100 * known["learnt_tokens"] / known["tokens"]
    yield f"{known['tokens']:,} tokens, {known['learnt_tokens']:,} of them learnt ({share:.1f} %)"
    yield "tokens per conversation: " + ", ".join(
        f"{name} {count:,}" for name, count in known["lengths"].items()
    )
    for reason, held in known["left_out"].items():
        yield f"left out, {reason}: {held['conversations']:,}"
        yield from (f"    {one}" for one in held["first"])


def _pairs(layout: OutputFolder, kind: str) -> Iterator[Path]:
    for part in layout.complete_parts():
        for _, found, prefix in layout.pairs_in(part):
            if found == kind and indexed.idx_path(prefix).exists():
                yield prefix
