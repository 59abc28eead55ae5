"""The report of a tuning, for people: why it ended, and a table of its trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from flagscale.formats import bytes_text, count, seconds_text
from flagscale.planner.tuning.space import Space
from flagscale.planner.tuning.tried import key_of
from flagscale.tuning.figures import label

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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:5]
    for *cells, layout in rows:
        columns = [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([*columns, layout]))
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
