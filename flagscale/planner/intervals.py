"""The published errors as intervals: how far measurements lay from the estimates of jobs of the same class.

`error_table.json` is written by `python -m benchmarks.estimate --write`, from measurements whose source had
no part in the constants.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flagscale.planner.training import Training

TABLE = Path(__file__).with_name("error_table.json")

CLASSES = ("dense", "VPP", "MoE", "CP", "mixed")
"""From the most ordinary to the most special one; a job is of the most special class that applies."""
ALL = "all"
QUANTITIES = ("time", "allocated", "reserved", "device")
LEAST = 12
"""Measurements that a class needs for intervals of its own; with fewer, those of all classes apply."""

_INSTEAD = {"reserved": "allocated", "device": "allocated"}
"""Quantities that are rarely published, and the one whose interval theirs includes."""

Factors = tuple[float, float]


def class_of(training: Training) -> str:
    """Return the class of a job."""
    applies = {
        "VPP": training.layout.chunks > 1,
        "MoE": training.model.experts > 0,
        "CP": any(mesh.cp > 1 for mesh in training.layout.meshes),
        "mixed": len({block.chip.name for block in training.blocks}) > 1,
    }
    return next((name for name in reversed(CLASSES) if applies.get(name)), CLASSES[0])


def interval(training: Training, quantity: str, is_calibrated: bool) -> Factors:
    """Return what an estimate is to be multiplied by for the lower and the upper end of its 95 % interval.

    Args:
        training: the job.
        quantity: one of `QUANTITIES`.
        is_calibrated: whether the estimate has a calibration for this machine and its software.
    """
    return factors(error_table(), class_of(training), quantity, is_calibrated)


def factors(table: Mapping[str, Any], kind: str, quantity: str, is_calibrated: bool) -> Factors:
    """Return the factors of a class in a table; see `interval`."""
    names = (quantity, _INSTEAD[quantity]) if quantity in _INSTEAD else (quantity,)
    found = [_factors(table, kind, name, is_calibrated) for name in names]
    return min(low for low, _ in found), max(high for _, high in found)


def _factors(table: Mapping[str, Any], kind: str, quantity: str, is_calibrated: bool) -> Factors:
    """Return the factors of the first class and state with enough rows; (1, 1) if no measurement has this."""
    for state in ("calibrated", "uncalibrated") if is_calibrated else ("uncalibrated",):
        for one in (kind, ALL):
            entry = table["classes"].get(one, {}).get(quantity, {}).get(state)
            if entry and entry["n"] >= LEAST:
                return float(entry["low"]), float(entry["high"])
    return 1.0, 1.0


@functools.cache
def error_table() -> Mapping[str, Any]:
    """Return the table that comes with FlagScale."""
    found: Mapping[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return found


def factors_of(ratios: list[float]) -> Factors:
    """Return the 95 % factors of ratios measured / estimated.

    They are the order statistics that leave out at most 2.5 % on each side; with fewer than 40 ratios, the
    smallest and the largest.
    """
    ordered = sorted(ratios)
    cut = len(ordered) // 40
    return ordered[cut], ordered[-1 - cut]
