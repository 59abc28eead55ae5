"""The picture (SVG) of the lengths of conversations: how many have how many tokens. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from flagscale.svg import box, document, line, text

_WIDTH, _HEIGHT, _EDGE = 640, 260, 60
_BARS_PER_DOUBLING = 4
_MOST_LABELS = 10
_STYLE = ".bar { fill: #4477aa; }"


def picture(lengths: np.ndarray, median: int, most_of_them: int) -> str:
    """Return the text of the file.

    Args:
        lengths: the tokens of each conversation, all above 0.
        median: the length that half of them do not exceed.
        most_of_them: the length that 95 % do not exceed.
    """
    first = int(np.log2(lengths.min()))
    doublings = max(1, int(np.ceil(np.log2(lengths.max() + 1))) - first)
    edges = 2.0 ** (first + np.arange(doublings * _BARS_PER_DOUBLING + 1) / _BARS_PER_DOUBLING)
    counts, _ = np.histogram(lengths, edges)

    def across(tokens: float) -> float:
        return _WIDTH * (float(np.log2(tokens)) - first) / doublings

    def parts() -> Iterator[str]:
        yield f'<g transform="translate({_EDGE},{_EDGE})">'
        yield text(_WIDTH / 2, -34, "conversations by their length", "title mid")
        yield box(0, 0, _WIDTH, _HEIGHT, 'fill="none" class="faint"')
        yield text(_WIDTH / 2, _HEIGHT + 38, "tokens (each step doubles them)", "mid")
        wide, most = _WIDTH / len(counts), int(counts.max())
        for number, count in enumerate(counts.tolist()):
            high = _HEIGHT * count / most
            least, end = (int(np.ceil(edges[number + more])) for more in (0, 1))
            title = f"{count:,} conversations of {least:,} to {max(least, end - 1):,} tokens"
            yield box(wide * number + 1, _HEIGHT - high, wide - 2, high, 'class="bar"', title)
        yield text(-6, 4, f"{most:,}", "end")
        yield text(-6, _HEIGHT, "0", "end")
        for doubling in range(0, doublings + 1, 1 + doublings // _MOST_LABELS):
            yield text(across(2.0 ** (first + doubling)), _HEIGHT + 18, f"{2 ** (first + doubling):,}", "mid")
        for name, tokens, up in (("median", median, 6), ("95 %", most_of_them, 20)):
            yield line(across(tokens), -up + 3, across(tokens), _HEIGHT, "limit")
            yield text(across(tokens), -up, f"{name} {tokens:,}", "mid")
        yield "</g>"

    return document(_WIDTH + 2 * _EDGE, _HEIGHT + 2 * _EDGE, "lengths of conversations", parts(), _STYLE)
