"""Measured rows beside their estimates: errors of the planner, uncalibrated and calibrated, and of others.

An error is estimate / measured - 1.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import comb, isfinite

from benchmarks.deepspeed_memory import on_device
from benchmarks.measured_fields import failure
from benchmarks.measured_rows import FUNCTIONAL_TESTS, ON_DEEPSPEED, Row
from flagscale.errors import UserError
from flagscale.planner.calibration import HOSTS, at_host, fitted, fitted_machine
from flagscale.planner.intervals import QUANTITIES
from flagscale.planner.memory.stage_memory import StageMemory
from flagscale.planner.training import Block, Training

TRIALS = 3
"""Rows of one machine and software that a calibration is fitted on."""
LEAST = 6
"""Rows of one machine and software that are judged; fewer are only shown."""
DRAWS = 20
"""Choices of the rows for a calibration; all of them if there are fewer."""


def is_apart(row: Row, quantity: str) -> bool:
    """Return whether a row does not count in its class: times of functional tests, or tests that resume."""
    return row.source == FUNCTIONAL_TESTS and (quantity == "time" or row.quality != "A")


@dataclass(frozen=True)
class Estimator:
    """The models to be scored."""

    memory: Callable[[Training], Sequence[StageMemory]]
    seconds: Callable[[Training, str, float], float]
    """(job, source of the row, factor of the host's time) -> seconds per step; no constant saw the source."""

    def time(self, row: Row, host: float = 1.0) -> float:
        """Return the seconds per step of a row: those of its slowest copy."""
        return max(self.seconds(job, row.source, host) for job in row.copies)


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
            # One row must not cost the table of all others.
            excluded.append(replace(row, reason=failure("the estimate failed", error), is_wrong=True))
        else:
            found.append(Scored(row, estimates, dict(row.predictions or {})))
    return _with_calibrations(found, estimator), excluded


def _estimates(row: Row, estimator: Estimator) -> dict[str, float]:
    found: dict[str, float] = {}
    if "time" in row.measured:
        found["time"] = estimator.time(row)
    if row.measured.keys() & {"allocated", "reserved", "device"}:
        stages = [
            (job, stage) for job in row.copies for stage in _measured_stages(row, estimator.memory(job))
        ]
        for quantity in ("allocated", "reserved"):
            found[quantity] = max(getattr(stage, quantity) for _, stage in stages)
        if row.source in ON_DEEPSPEED:
            found["device"] = max(on_device(job, stage) for job, stage in stages)
        else:
            found["device"] = max(stage.device for _, stage in stages)
    if wrong := [quantity for quantity, value in found.items() if not (isfinite(value) and value > 0)]:
        raise UserError(f"the estimate of {wrong[0]} is {found[wrong[0]]}")
    return {quantity: value for quantity, value in found.items() if quantity in row.measured}


PUBLISHED_PEAK = "planner, published peak"
"""The planner without what the source of the rows itself measured on the chip, as a tool of its own."""
_MEASURED_BY = {"simumax": ("gemm_share_of_peak_median", "grouped_gemm_share_median")}
"""By source: the figures of chips.json that it measured on the machine of its rows."""


def with_published_peak(found: Sequence[Scored], estimator: Estimator) -> list[Scored]:
    """Return the rows, those of a source that measured its chip also with the published peak of that chip."""
    return [_with_published_peak(one, estimator) if "time" in one.estimates else one for one in found]


def _with_published_peak(one: Scored, estimator: Estimator) -> Scored:
    names = _MEASURED_BY.get(one.row.source, ())

    def published(block: Block) -> Block:
        rest = {name: value for name, value in block.chip.measured.items() if name not in names}
        return replace(block, chip=replace(block.chip, measured=rest))

    if not any(
        name in block.chip.measured for job in one.row.copies for block in job.blocks for name in names
    ):
        return one
    jobs = tuple(replace(job, blocks=tuple(map(published, job.blocks))) for job in one.row.copies)
    seconds = estimator.time(replace(one.row, copies=jobs))
    return replace(one, others={**one.others, PUBLISHED_PEAK: {"time": seconds}})


def _measured_stages(row: Row, stages: Sequence[StageMemory]) -> Sequence[StageMemory]:
    return stages[-1:] if row.is_last_stage else stages


def machines(found: Sequence[Scored]) -> dict[tuple[str, str, str], list[Scored]]:
    """Return the rows of each source, machine and software."""
    groups: dict[tuple[str, str, str], list[Scored]] = {}
    for one in found:
        groups.setdefault(one.row.machine, []).append(one)
    return groups


def _with_calibrations(found: Sequence[Scored], estimator: Estimator) -> list[Scored]:
    errors: dict[int, dict[str, tuple[float, ...]]] = {id(one): {} for one in found}
    judged: dict[int, set[str]] = {id(one): set() for one in found}
    for machine, group in machines(found).items():
        for quantity in QUANTITIES:
            usable = [one for one in group if one.error(quantity) is not None]
            held_out = _times(usable, estimator) if quantity == "time" else _memories(usable, quantity)
            after = [(draw, held_out(draw)) for draw in draws(len(usable), str(machine))]
            for number, one in enumerate(usable):
                errors[id(one)][quantity] = tuple(own[number] for draw, own in after if number not in draw)
                if len(usable) >= LEAST:
                    judged[id(one)].add(quantity)
    return [replace(one, calibrated=errors[id(one)], judged=frozenset(judged[id(one)])) for one in found]


HeldOut = Callable[[tuple[int, ...]], list[float]]
"""(rows that a calibration is fitted on) -> the errors of all rows after it."""


def _times(group: Sequence[Scored], estimator: Estimator) -> HeldOut:
    """Return the errors of time after a calibration of scale and host."""
    has_draws = len(group) > TRIALS
    curves = [[estimator.time(one.row, host) for host in HOSTS] if has_draws else [] for one in group]
    measured = [one.row.measured["time"] for one in group]

    def held_out(draw: tuple[int, ...]) -> list[float]:
        calibration = fitted_machine(
            [curves[number] for number in draw], [measured[number] for number in draw]
        )
        return [
            calibration.seconds(at_host(curve, calibration.host)) / seconds - 1
            for curve, seconds in zip(curves, measured, strict=True)
        ]

    return held_out


def _memories(group: Sequence[Scored], quantity: str) -> HeldOut:
    """Return the errors of memory after a calibration of its constant."""
    pairs = [(one.estimates[quantity], one.row.measured[quantity]) for one in group]

    def held_out(draw: tuple[int, ...]) -> list[float]:
        calibration = fitted(memories=[pairs[number] for number in draw])
        return [calibration.nbytes(estimated) / measured - 1 for estimated, measured in pairs]

    return held_out


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
