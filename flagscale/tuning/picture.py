"""The picture of a tuning (SVG): measured against estimated times, and the best time over the trials."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.formats import seconds_text
from flagscale.planner.tuning.space import Space
from flagscale.svg import box, document, dot, line, text
from flagscale.tuning.figures import label
from flagscale.tuning.report import Entries

_WIDTH, _HEIGHT, _EDGE = 380, 300, 60
_STYLE = """
.measured { fill: #4477aa; } .best { stroke: #4477aa; } .failed { fill: #ee6677; text-anchor: middle; }
"""


def picture(entries: Entries, space: Space) -> str:
    """Return the text of the file."""
    whole = _WIDTH + 2 * _EDGE
    panels = [
        f'<g transform="translate({_EDGE + number * whole},{_EDGE - 10})">{"".join(panel)}</g>'
        for number, panel in enumerate((_comparison(entries, space), _progress(entries, space)))
    ]
    title = "measured and estimated times per step"
    return document(2 * whole, _HEIGHT + 2 * _EDGE, title, panels, _STYLE)


def _comparison(entries: Entries, space: Space) -> Iterator[str]:
    points = [
        (one["estimate"]["seconds"], one["seconds"], one)
        for one in entries
        if one.get("seconds") and (one.get("estimate") or {}).get("seconds")
    ]
    most = 1.1 * max((max(x, y) for x, y, _ in points), default=1.0)
    yield from _frame("measured against estimated time per step", "estimated", most, across=most)
    yield line(0, _HEIGHT, _WIDTH, 0, "limit")
    for expected, measured, one in points:
        x, y = _WIDTH * expected / most, _HEIGHT * (1 - measured / most)
        yield dot(x, y, "measured", _name(one, space))
    if not points:
        yield text(_WIDTH / 2, _HEIGHT / 2, "no estimates", "mid")


def _progress(entries: Entries, space: Space) -> Iterator[str]:
    ordered = sorted(entries, key=lambda one: one["number"])
    most = 1.1 * max((one["seconds"] for one in ordered if one.get("seconds")), default=1.0)
    yield from _frame("time per step of each trial, and the best so far", "trials", most)
    step = _WIDTH / max(1, len(ordered))
    best: float | None = None
    for number, one in enumerate(ordered):
        x, before = step * (number + 0.5), best
        if one["state"] != "measured":
            yield text(x, _HEIGHT - 8, "×", "failed", f"{_name(one, space)}: {one['state']}")
        else:
            best = min(best or one["seconds"], one["seconds"])
            yield dot(x, _HEIGHT * (1 - one["seconds"] / most), "measured", _name(one, space))
        if best is not None and before is not None:
            high, low = (_HEIGHT * (1 - seconds / most) for seconds in (before, best))
            yield line(x - step, high, x, high, "best")
            yield line(x, high, x, low, "best")


def _name(entry: Mapping[str, Any], space: Space) -> str:
    return f"trial {entry['number']}: {label(entry['changes'], space)}"


def _frame(title: str, below: str, up: float, across: float | None = None) -> Iterator[str]:
    """Yield a frame with labels at every quarter of its axes; `across` None: that axis only counts."""
    yield text(_WIDTH / 2, -15, title, "title mid")
    yield box(0, 0, _WIDTH, _HEIGHT, 'fill="none" class="faint"')
    yield text(_WIDTH / 2, _HEIGHT + 36, below, "mid")
    for part in (0.25, 0.5, 0.75, 1.0):
        yield text(-6, _HEIGHT * (1 - part) + 4, seconds_text(up * part), "end")
        if across is not None:
            yield text(_WIDTH * part, _HEIGHT + 18, seconds_text(across * part), "mid")
