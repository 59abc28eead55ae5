"""The published errors as the table from which every estimate takes its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.error_tables import markdown
from benchmarks.estimated_rows import Scored, is_apart
from flagscale.planner.intervals import ALL, CLASSES, QUANTITIES, factors_of


def error_table(found: Sequence[Scored]) -> dict[str, Any]:
    """Return the content of error_table.json: the factors by class, quantity and state, with their rows."""
    classes: dict[str, Any] = {}
    for kind in (*CLASSES, ALL):
        for quantity in QUANTITIES:
            rows = [row for row in found if kind in (ALL, row.row.kind) and not is_apart(row.row, quantity)]
            judged = [row for row in rows if quantity in row.judged]
            for state, ratios in (
                ("uncalibrated", _plain(rows, quantity)),
                ("calibrated", _after(judged, quantity)),
            ):
                if ratios:
                    low, high = factors_of(ratios)
                    n = len(judged if state == "calibrated" else ratios)
                    entry = {"n": n, "low": _round(low), "high": _round(high)}
                    classes.setdefault(kind, {}).setdefault(quantity, {})[state] = entry
    about = "Written by python -m benchmarks.estimate --write; see flagscale/planner/intervals.py."
    return {"about": about, "classes": classes}


def intervals_table(table: Mapping[str, Any]) -> str:
    """Return the table of the intervals that every estimate shows, as error_table.json gives them."""
    lines = []
    for quantity in QUANTITIES:
        for kind in (*CLASSES, ALL):
            if entries := table["classes"].get(kind, {}).get(quantity, {}):
                cells = [_cells(entries.get(state)) for state in ("uncalibrated", "calibrated")]
                lines.append([quantity, kind, *cells[0], *cells[1]])
    head = ["quantity", "class", "n", "interval", "*calibrated* n", "interval"]
    return f"**Intervals of 95 %: measured / estimated**\n\n{markdown(head, lines)}"


def _cells(entry: Mapping[str, Any] | None) -> list[str]:
    return [str(entry["n"]), f"{entry['low']:.3g} to {entry['high']:.3g}"] if entry else ["", ""]


def _plain(rows: Sequence[Scored], quantity: str) -> list[float]:
    """Return measured / estimated."""
    return [1 / (1 + error) for row in rows if (error := row.error(quantity)) is not None]


def _after(rows: Sequence[Scored], quantity: str) -> list[float]:
    return [1 / (1 + error) for row in rows for error in row.calibrated[quantity] if error > -1]


def _round(factor: float) -> float:
    return float(f"{factor:.3g}")
