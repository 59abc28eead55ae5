"""The picture of an evaluation of several models (SVG): each metric over the iterations, with its error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from flagscale.svg import box, document, dot, line, text
from megatron.flagscale.evaluation.scores import Score

_WIDTH, _HEIGHT, _LEFT, _TOP, _COLUMNS = 300, 180, 70, 60, 3
_PANEL = (_WIDTH + 100, _HEIGHT + 110)
_STYLE = (
    ".score { fill: #4477aa; } .curve { stroke: #4477aa; stroke-width: 1.5; } .error { stroke: #4477aa; }\n"
)


def picture(scores: Sequence[Score]) -> str:
    """Return the text of a file with one panel per task and metric.

    A value that is no finite number is left out. The models are at their iterations if all of them have
    different ones, otherwise side by side in order.
    """
    groups: dict[tuple[str, str], list[Score]] = {}
    for one in scores:
        if not math.isfinite(one.value):
            continue
        groups.setdefault((one.task, one.metric), []).append(one)
    columns = min(_COLUMNS, len(groups))
    panels = []
    for number, ((task, metric), found) in enumerate(groups.items()):
        x, y = (number % columns) * _PANEL[0] + _LEFT, (number // columns) * _PANEL[1] + _TOP
        inner = "".join(_panel(f"{task}: {metric}", found))
        panels.append(f'<g transform="translate({x},{y})">{inner}</g>')
    rows = (len(groups) + columns - 1) // columns
    return document(columns * _PANEL[0], rows * _PANEL[1], "scores of several models", panels, _STYLE)


def _panel(title: str, scores: Sequence[Score]) -> Iterator[str]:
    places, labels, below = _places(scores)
    ends = [one.value + sign * (one.stderr or 0.0) for one in scores for sign in (-1, 1)]
    low, high = min(ends), max(ends)
    room = 0.08 * (high - low) or max(abs(high), 1.0) * 0.05
    low, high = low - room, high + room

    def up(value: float) -> float:
        return _HEIGHT * (high - value) / (high - low)

    yield text(_WIDTH / 2, -14, title, "title mid")
    yield box(0, 0, _WIDTH, _HEIGHT, 'fill="none" class="faint"')
    for part in (0.0, 0.5, 1.0):
        value = low + part * (high - low)
        yield text(-6, up(value) + 4, f"{value:.4g}", "end")
    yield text(_WIDTH / 2, _HEIGHT + 34, below, "mid")
    points = [(place, up(one.value), one) for place, one in zip(places, scores, strict=True)]
    for (x, y, _), (to_x, to_y, _) in pairwise(points):
        yield line(x, y, to_x, to_y, "curve")
    for (x, y, one), label in zip(points, labels, strict=True):
        if one.stderr:
            yield line(x, up(one.value - one.stderr), x, up(one.value + one.stderr), "error")
        error = f" ± {one.stderr:.4f}" if one.stderr is not None else ""
        yield dot(x, y, "score", f"{one.model}: {one.value:.4f}{error}")
        yield text(x, _HEIGHT + 16, label, "mid")


def _places(scores: Sequence[Score]) -> tuple[list[float], list[str], str]:
    """Return where the scores are from left to right, their labels, and what the axis shows."""
    iterations = [one.iteration for one in scores]
    edge = 0.06 * _WIDTH
    known = [one for one in iterations if one is not None]
    if len({*known}) == len(scores) > 1:
        first, last = min(known), max(known)
        places = [edge + (_WIDTH - 2 * edge) * (one - first) / (last - first) for one in known]
        return places, _thinned(places, [f"{one:,}" for one in known]), "iteration"
    step = _WIDTH / len(scores)
    places = [step * (number + 0.5) for number in range(len(scores))]
    return places, _thinned(places, [one.model for one in scores]), "models"


def _thinned(places: Sequence[float], labels: Sequence[str]) -> list[str]:
    """Return the labels with those left empty that would cover the one before (7 pixels per letter)."""
    shown, free = [], -float("inf")
    for place, label in zip(places, labels, strict=True):
        half = 3.5 * len(label)
        fits = place - half > free
        shown.append(label if fits else "")
        free = place + half + 6 if fits else free
    return shown
