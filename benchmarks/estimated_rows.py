"""Measured rows beside their estimates: errors of the planner, uncalibrated and calibrated, and of others.

An error is estimate / measured - 1.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import comb, isfinite

from benchmarks.measured_rows import Row
from flagscale.errors import UserError
from flagscale.planner.calibration import Calibration, fitted
from flagscale.planner.intervals import QUANTITIES
from flagscale.planner.memory import StageMemory
from flagscale.planner.training import Training

TRIALS = 3
"""Rows of one machine and software that a calibration is fitted on."""
LEAST = 6
"""Rows of one machine and software that are judged; fewer are only shown."""
DRAWS = 20
"""Choices of the rows for a calibration; all of them if there are fewer."""

FUNCTIONAL_TESTS = "mlm"
"""A source of tiny models (12 layers of 512), for a few iterations, in which the host's time decides."""


def is_apart(row: Row, quantity: str) -> bool:
    """Return whether a row does not count in its class: times of functional tests, or tests that resume."""
    return row.source == FUNCTIONAL_TESTS and (quantity == "time" or row.quality != "A")


@dataclass(frozen=True)
class Estimator:
    """The models to be scored."""

    memory: Callable[[Training], Sequence[StageMemory]]
    seconds: Callable[[Training, str], float]
    """(job, source of the row) -> seconds per step, with constants that never saw the source."""


@dataclass(frozen=True)
class Scored:
    """One row with its estimates, in the units of the measurements."""

    row: Row
    estimates: Mapping[str, float]
    others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By tool: its estimates."""
    calibrated: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """By quantity: the errors after calibrations in which the row had no part, one for each draw."""
    judged: frozenset[str] = frozenset()
    """The quantities for which enough rows are of the same machine and software."""

    def error(self, quantity: str) -> float | None:
        """Return the error of an estimate; None if it was not measured or not estimated."""
        return _error(self.estimates.get(quantity), self.row.measured.get(quantity))

    def error_of(self, tool: str, quantity: str) -> float | None:
        """Return the error of another tool's estimate."""
        return _error(self.others.get(tool, {}).get(quantity), self.row.measured.get(quantity))


def _error(estimate: float | None, measured: float | None) -> float | None:
    return estimate / measured - 1 if estimate and measured else None


def scored(rows: Sequence[Row], estimator: Estimator) -> tuple[list[Scored], list[Row]]:
    """Return the rows with their estimates, and those that have none, each with its reason."""
    found: list[Scored] = []
    excluded: list[Row] = []
    for row in rows:
        if row.reason:
            excluded.append(row)
            continue
        try:
            estimates = _estimates(row, estimator)
        except UserError as error:
            excluded.append(replace(row, reason="; ".join(problem.what for problem in error.problems)))
        except Exception as error:
            # One row must not cost the table of all others; the place in our code is in the report.
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
            what = f"the estimate failed: {type(error).__name__}: {error} ({place})"
            excluded.append(replace(row, reason=what, is_wrong=True))
        else:
            found.append(Scored(row, estimates, dict(row.predictions or {})))
    return _with_calibrations(found), excluded


def _estimates(row: Row, estimator: Estimator) -> dict[str, float]:
    found: dict[str, float] = {}
    if "time" in row.measured:
        found["time"] = max(estimator.seconds(job, row.source) for job in row.copies)
    if row.measured.keys() & {"allocated", "reserved", "device"}:
        stages = [stage for job in row.copies for stage in _measured_stages(row, estimator.memory(job))]
        for quantity in ("allocated", "reserved", "device"):
            found[quantity] = max(getattr(stage, quantity) for stage in stages)
    if wrong := [quantity for quantity, value in found.items() if not (isfinite(value) and value > 0)]:
        raise UserError(f"the estimate of {wrong[0]} is {found[wrong[0]]}")
    return {quantity: value for quantity, value in found.items() if quantity in row.measured}


def _measured_stages(row: Row, stages: Sequence[StageMemory]) -> Sequence[StageMemory]:
    return stages[-1:] if row.is_last_stage else stages


def machines(found: Sequence[Scored]) -> dict[tuple[str, str, str], list[Scored]]:
    """Return the rows of each source, machine and software."""
    groups: dict[tuple[str, str, str], list[Scored]] = {}
    for one in found:
        groups.setdefault(one.row.machine, []).append(one)
    return groups


def _with_calibrations(found: Sequence[Scored]) -> list[Scored]:
    errors: dict[int, dict[str, tuple[float, ...]]] = {id(one): {} for one in found}
    judged: dict[int, set[str]] = {id(one): set() for one in found}
    for machine, group in machines(found).items():
        for quantity in QUANTITIES:
            usable = [one for one in group if one.error(quantity) is not None]
            for one, own in zip(usable, _held_out(usable, quantity, str(machine)), strict=True):
                errors[id(one)][quantity] = tuple(own)
                if len(usable) >= LEAST:
                    judged[id(one)].add(quantity)
    return [replace(one, calibrated=errors[id(one)], judged=frozenset(judged[id(one)])) for one in found]


def _held_out(group: Sequence[Scored], quantity: str, seed: str) -> list[list[float]]:
    """Return, for each row, its errors after the calibrations that were fitted on other rows."""
    errors: list[list[float]] = [[] for _ in group]
    pairs = [(one.estimates[quantity], one.row.measured[quantity]) for one in group]
    for chosen in draws(len(group), seed):
        calibration = (
            fitted(times=[pairs[number] for number in chosen])
            if quantity == "time"
            else fitted(memories=[pairs[number] for number in chosen])
        )
        for number, (estimated, measured) in enumerate(pairs):
            if number not in chosen:
                errors[number].append(calibrated(calibration, quantity, estimated) / measured - 1)
    return errors


def calibrated(calibration: Calibration, quantity: str, estimated: float) -> float:
    """Return an estimate after a calibration."""
    return calibration.seconds(estimated) if quantity == "time" else calibration.nbytes(estimated)


def draws(rows: int, seed: str) -> list[tuple[int, ...]]:
    """Return choices of `TRIALS` of the rows, the same ones for the same seed; none if no row remains."""
    if rows <= TRIALS:
        return []
    if comb(rows, TRIALS) <= DRAWS:
        return [*combinations(range(rows), TRIALS)]
    generator = random.Random(seed)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < DRAWS:
        found[tuple(sorted(generator.sample(range(rows), TRIALS)))] = None
    return [*found]
