"""Fit the constants of the time model on published measurements, leaving one source out at a time.

Two groups of constants are fitted one after another, each on the rows that tell something about it: all but
those of experts, and those of experts. Constants whose range is a point are not fitted.

The loss is the mean over groups of rows (one source, chip and class each) of a robust error: small ones count
with their size, and errors far beyond `CAP` do not count more, because then a row has a cause that the model
does not know. A coordinate search tries larger and smaller values of one constant after another, in ranges
that make sense physically (flagscale/planner/constants.json).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.measured_rows import Row
from flagscale.errors import UserError
from flagscale.planner.constants import TABLE, Constants, constants_table
from flagscale.planner.step_time import step_time

ENGINE = ("calculon", "flagperf", "mbridge", "mlperf", "simumax", "vtrain")
"""Sources whose jobs ran on Megatron, at full speed.

Not here: `mlm`, functional tests of tiny models, whose time is that of logging and of busy hosts; `nemo`,
which gives rates and does not say how it counts attention; other engines (AMP, Sailor).
"""

CAP = 0.5
"""Errors, as the logarithm of estimate / measured, beyond which a row counts no more."""
STEPS = (0.3, 0.1, 0.03)
"""Relative changes of a constant that are tried, the largest first."""
SWEEPS = 3
"""Passes over all constants with one step, at most."""
MOST = 8
"""Rows of one group that are used, at equal distances in the order of the file."""

Key = tuple[str, str, str]
Groups = Mapping[Key, Sequence[Row]]


def fitted_table(rows: Sequence[Row], report: Callable[[str], None] = print) -> dict[str, Any]:
    """Return constants.json with values fitted on these rows, all of them and without each source."""
    groups = grouped(rows)
    found: dict[str, Any] = {**constants_table(), "without": {}}
    start = Constants(**{name: one["start"] for name, one in constants_table()["meanings"].items()})
    everything = fit(groups, start)
    found["all"] = _rounded(everything)
    report(f"all: {len(groups)} groups, loss {loss(groups, everything):.4f}")
    for source in sorted({source for source, _, _ in groups}):
        rest = {key: own for key, own in groups.items() if key[0] != source}
        # Not from the values above, in which the source had a part.
        values = fit(rest, start)
        found["without"][source] = _rounded(values)
        report(f"without {source}: {len(rest)} groups, loss {loss(rest, values):.4f}")
    return found


def fit(groups: Groups, start: Constants) -> Constants:
    """Return the constants that fit best, each on the groups that tell something about it."""
    ordinary = {key: own for key, own in groups.items() if key[2] != "MoE"}
    experts = {key: own for key, own in groups.items() if key[2] == "MoE"}
    names = [name for name, one in constants_table()["meanings"].items() if one["low"] < one["high"]]
    values = _searched(ordinary, start, [name for name in names if name not in _OF_EXPERTS])
    return _searched(experts, values, _OF_EXPERTS)


_OF_EXPERTS = ("grouped_share", "alltoall_share")


def write(table: Mapping[str, Any]) -> None:
    """Write constants.json: one line for each set of values."""
    lines = [f' "about": {json.dumps(table["about"])},', ' "meanings": {']
    lines.append(",\n".join(f'  "{name}": {json.dumps(one)}' for name, one in table["meanings"].items()))
    lines += [" },", f' "all": {json.dumps(table["all"])},', ' "without": {']
    lines.append(",\n".join(f'  "{name}": {json.dumps(one)}' for name, one in table["without"].items()))
    lines += [" }"]
    TABLE.write_text("{\n" + "\n".join(lines) + "\n}\n", encoding="utf-8")


def grouped(rows: Sequence[Row]) -> dict[Key, list[Row]]:
    """Return the rows that can be used, by source, chip and class, at most `MOST` of each."""
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        if row.source in ENGINE and not row.reason and "time" in row.measured:
            groups.setdefault((row.source, row.chip, row.kind), []).append(row)
    return {key: _spread(own) for key, own in groups.items()}


def _searched(groups: Groups, start: Constants, names: Sequence[str]) -> Constants:
    """Return the constants with the smallest loss that a search from `start` over some of them finds."""
    meanings = constants_table()["meanings"]
    best, least = start, loss(groups, start)
    for step in STEPS:
        for _ in range(SWEEPS):
            before = least
            for name in names:
                for candidate in _neighbours(best, name, step, meanings[name]):
                    if (found := loss(groups, candidate)) < least - 1e-5:
                        best, least = candidate, found
                        break
            if least == before:
                break
    return best


def loss(groups: Groups, values: Constants) -> float:
    """Return the mean over groups, the larger ones with more weight, of the mean robust error."""
    total = weights = 0.0
    for rows in groups.values():
        errors = [error for row in rows if (error := _error(row, values)) is not None]
        if errors:
            weight = math.sqrt(len(errors))
            total += weight * sum(_robust(error) for error in errors) / len(errors)
            weights += weight
    return total / weights if weights else math.inf


def _robust(error: float) -> float:
    return CAP * math.tanh(abs(error) / CAP)


def _error(row: Row, values: Constants) -> float | None:
    try:
        return math.log(max(step_time(job, values).seconds for job in row.copies) / row.measured["time"])
    except UserError:
        return None


def _neighbours(values: Constants, name: str, step: float, limits: Mapping[str, float]) -> list[Constants]:
    now = getattr(values, name)
    unit = now or (limits["high"] - limits["low"]) / 10
    moved = {min(max(now + sign * step * unit, limits["low"]), limits["high"]) for sign in (1, -1)}
    return [Constants(**{**values.__dict__, name: value}) for value in sorted(moved - {now})]


def _spread(rows: list[Row]) -> list[Row]:
    if len(rows) <= MOST:
        return rows
    return [rows[number * len(rows) // MOST] for number in range(MOST)]


def _rounded(values: Constants) -> dict[str, float]:
    return {name: float(f"{value:.3g}") for name, value in values.__dict__.items()}
