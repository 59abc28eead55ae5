"""What a tuning has learnt, for people: a table, a page and a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import fmean
from typing import Any

from flagscale.formats import count
from flagscale.planner.space import Space
from flagscale.planner.tried import key_of
from flagscale.tuning.figures import bytes_text, label, seconds_text

Entries = Sequence[Mapping[str, Any]]


def summary(entries: Entries, space: Space, candidates: int, reason: str) -> str:
    """Return why the search ended, and a table of its trials, fastest first."""
    tried = len({key_of(one["changes"]) for one in entries})
    lines = [f"tried {tried} of {count(candidates, 'candidate')} in {count(len(entries), 'trial')}: {reason}"]
    if errors := _errors(entries):
        mean, worst = fmean(map(abs, errors)), max(errors, key=abs)
        lines.append(f"estimates were off by {100 * mean:.0f} % on average, {100 * worst:+.0f} % at worst")
    if not entries:
        return "\n".join(lines)
    rows = [("trial", "per step", "expected", "memory", "expected", "layout")]
    for one in _ordered(entries):
        estimate = one.get("estimate") or {}
        shown = seconds_text(one["seconds"]) if one["state"] == "measured" else one["state"]
        text = label(one["changes"], space)
        rows.append(
            (
                str(one["number"]),
                shown,
                seconds_text(estimate.get("seconds")),
                bytes_text(one.get("mem_bytes")),
                bytes_text(estimate.get("bytes")),
                text if one["state"] == "measured" else f"{text}: {one.get('failure')}",
            )
        )
    wide = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        lines.append(
            "  ".join(f"{cell:>{size}}" for cell, size in zip(row, wide, strict=False)) + f"  {row[5]}"
        )
    return "\n".join(lines)


def page(text: str, picture: str) -> str:
    """Return the report as Markdown, with the picture beside it."""
    return f"# What tuning has learnt\n\n![measured and estimated times]({picture})\n\n```\n{text}\n```\n"


def _ordered(entries: Entries) -> list[Mapping[str, Any]]:
    return sorted(
        entries, key=lambda one: (one["state"] != "measured", one.get("seconds") or 0.0, one["number"])
    )


def _errors(entries: Entries) -> list[float]:
    """Return the relative error of each estimate that was measured afterwards."""
    pairs = [(one["seconds"], (one.get("estimate") or {}).get("seconds")) for one in entries]
    return [expected / measured - 1 for measured, expected in pairs if measured and expected]


_WIDTH, _HEIGHT, _EDGE = 380, 300, 60
_TEXT = 'font-family="sans-serif" font-size="12" fill="#333"'
_BLUE, _RED, _GREY = "#2563a8", "#b3341f", "#999"


def picture(entries: Entries, space: Space) -> str:
    """Return an SVG: measured against estimated time per step, and the best time over the trials."""
    panels = [_comparison(entries, space), _progress(entries, space)]
    width, height = 2 * (_WIDTH + 2 * _EDGE), _HEIGHT + 2 * _EDGE
    shifted = [
        f'<g transform="translate({_EDGE + number * (_WIDTH + 2 * _EDGE)},{_EDGE - 10})">{panel}</g>'
        for number, panel in enumerate(panels)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}">\n<rect width="{width}" height="{height}" fill="white"/>\n'
        + "\n".join(shifted)
        + "\n</svg>\n"
    )


def _comparison(entries: Entries, space: Space) -> str:
    points = [
        (one["estimate"]["seconds"], one["seconds"], one)
        for one in entries
        if one.get("seconds") and (one.get("estimate") or {}).get("seconds")
    ]
    most = 1.1 * max((max(x, y) for x, y, _ in points), default=1.0)
    marks = [_line(0, _HEIGHT, _WIDTH, 0, _GREY, dash=True)]
    for expected, measured, one in points:
        x, y = _WIDTH * expected / most, _HEIGHT * (1 - measured / most)
        marks.append(_dot(x, y, f"trial {one['number']}: {label(one['changes'], space)}"))
    if not points:
        marks.append(
            f'<text x="{_WIDTH / 2}" y="{_HEIGHT / 2}" text-anchor="middle" {_TEXT}>no estimates</text>'
        )
    ticks = _ticks(most, most)
    return _frame("measured against estimated time per step", "estimated", [*ticks, *marks])


def _progress(entries: Entries, space: Space) -> str:
    ordered = sorted(entries, key=lambda one: one["number"])
    most = 1.1 * max((one["seconds"] for one in ordered if one.get("seconds")), default=1.0)
    step = _WIDTH / max(1, len(ordered))
    marks, best, before = [], None, None
    for number, one in enumerate(ordered):
        x, title = step * (number + 0.5), f"trial {one['number']}: {label(one['changes'], space)}"
        if one["state"] != "measured":
            marks.append(_cross(x, _HEIGHT - 8, f"{title}: {one['state']}"))
        else:
            best = min(best or one["seconds"], one["seconds"])
            marks.append(_dot(x, _HEIGHT * (1 - one["seconds"] / most), title))
        if best is not None:
            now = _HEIGHT * (1 - best / most)
            if before is not None:
                marks += [_line(x - step, before, x, before, _BLUE), _line(x, before, x, now, _BLUE)]
            before = now
    return _frame("time per step of each trial, and the best so far", "trials", [*_ticks(None, most), *marks])


def _frame(title: str, below: str, marks: Iterable[str]) -> str:
    return (
        f'<text x="{_WIDTH / 2}" y="-15" text-anchor="middle" {_TEXT} font-weight="bold">{title}</text>'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="{_GREY}"/>'
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 36}" text-anchor="middle" {_TEXT}>{below}</text>'
        + "".join(marks)
    )


def _ticks(across: float | None, up: float) -> list[str]:
    """Return labels at a quarter, half ... of an axis; `across` None: that axis only counts."""
    found = []
    for part in (0.25, 0.5, 0.75, 1.0):
        y = _HEIGHT * (1 - part)
        found.append(
            f'<text x="-6" y="{y + 4:.0f}" text-anchor="end" {_TEXT}>{seconds_text(up * part)}</text>'
        )
        if across is not None:
            x = _WIDTH * part
            text = seconds_text(across * part)
            found.append(f'<text x="{x:.0f}" y="{_HEIGHT + 18}" text-anchor="middle" {_TEXT}>{text}</text>')
    return found


def _line(x: float, y: float, to_x: float, to_y: float, color: str, *, dash: bool = False) -> str:
    dashes = ' stroke-dasharray="4 4"' if dash else ""
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{color}"{dashes}/>'


def _dot(x: float, y: float, title: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{_BLUE}"><title>{escape(title)}</title></circle>'


def _cross(x: float, y: float, title: str) -> str:
    text = f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" font-size="14" fill="{_RED}">×'
    return f"{text}<title>{escape(title)}</title></text>"
