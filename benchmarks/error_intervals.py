"""The published errors as the table from which every estimate takes its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.estimated_rows import Scored
from flagscale.planner.intervals import ALL, CLASSES, QUANTITIES, factors_of


def error_table(found: Sequence[Scored]) -> dict[str, Any]:
    """Return the content of error_table.json: by class, quantity and state, the factors and the rows behind them."""
    classes: dict[str, Any] = {}
    for kind in (*CLASSES, ALL):
        rows = [row for row in found if kind in (ALL, row.row.kind)]
        for quantity in QUANTITIES:
            for state, ratios in (
                ("uncalibrated", _plain(rows, quantity)),
                ("calibrated", _after(rows, quantity)),
            ):
                if ratios:
                    low, high = factors_of(ratios)
                    entry = {"n": _rows(rows, quantity, state), "low": _round(low), "high": _round(high)}
                    classes.setdefault(kind, {}).setdefault(quantity, {})[state] = entry
    about = "Written by python -m benchmarks.estimate --write; see flagscale/planner/intervals.py."
    return {"about": about, "classes": classes}


def _plain(rows: Sequence[Scored], quantity: str) -> list[float]:
    """Return measured / estimated."""
    return [1 / (1 + error) for row in rows if (error := row.error(quantity)) is not None]


def _after(rows: Sequence[Scored], quantity: str) -> list[float]:
    return [1 / (1 + error) for row in rows if quantity in row.judged for error in row.calibrated[quantity]]


def _rows(rows: Sequence[Scored], quantity: str, state: str) -> int:
    if state == "calibrated":
        return sum(quantity in row.judged for row in rows)
    return sum(row.error(quantity) is not None for row in rows)


def _round(factor: float) -> float:
    return float(f"{factor:.3g}")
