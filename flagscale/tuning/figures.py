"""The candidates of a job with their estimates, and what the trials so far have taught about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, log, log2
from statistics import median
from typing import Any

from flagscale.checks.degrees import degrees
from flagscale.frozen import dataclass, replace
from flagscale.planner.calibration import fitted
from flagscale.planner.tuning.propose import Candidate, Known
from flagscale.planner.tuning.residuals import residuals
from flagscale.planner.tuning.space import (
    DIMENSIONS,
    DISTRIBUTED,
    DP,
    GRANULARITY,
    LAYERS,
    METHOD,
    MICRO,
    SEQUENCE,
    Changes,
    Space,
)
from flagscale.planner.tuning.tried import key_of
from flagscale.tuning.outcome import noise_of

UNRELIABLE = 0.7
"""The error of estimates of a machine of which little is known; see `Prior.error`."""


@dataclass(frozen=True)
class Prior:
    """The candidates of a job, with what is expected of them before any trial."""

    candidates: tuple[Candidate, ...]
    capacity: float = 0.0
    """Bytes that a process can use on a device; 0: unknown."""
    is_nominal: bool = False
    """Whether chip or model are unknown: what is expected only ranks, until a trial has calibrated it."""
    error: float = UNRELIABLE
    """The stated error of an estimate, as the standard deviation of its logarithm."""
    factors: tuple[float, float] = (1e-300, inf)
    """The published interval of times, uncalibrated: outside, estimates are not reliable on this machine."""
    notices: tuple[str, ...] = ()
    """Why there are no estimates, or fewer than candidates."""


def sizes_of(changes: Changes, space: Space, batch: int) -> dict[str, int]:
    """Return the sizes that follow from a candidate: copies of the model, and micro-batches per step."""
    found = degrees({**space.values, **changes}, space.world_size)
    return {DP: found.dp, "acc_step": batch // (found.dp * int(changes[MICRO]))}


def label(changes: Changes, space: Space) -> str:
    """Return a candidate as text: `tp2 x dp2, micro-batch 4, full recompute of 1 (block)`."""
    values = {**space.values, **changes}
    parts = [str(degrees(values, space.world_size)), f"micro-batch {values[MICRO]}"]
    parts += ["sequence parallel"] if values.get(SEQUENCE) else []
    parts += ["distributed optimizer"] if values.get(DISTRIBUTED) else []
    if values.get(GRANULARITY) == "full":
        parts.append(f"full recompute ({values.get(METHOD)} {values.get(LAYERS)})")
    elif values.get(GRANULARITY):
        parts.append(f"{values[GRANULARITY]} recompute")
    own = {name: value for name, value in changes.items() if name in _others(space)}
    parts += [f"{name} {value}" for name, value in own.items()]
    return ", ".join(parts)


def _others(space: Space) -> set[str]:
    return {*space.choices} - {*DIMENSIONS}


def features_of(changes: Changes, space: Space, *, is_estimated: bool) -> tuple[float, ...]:
    """Return what the error of a candidate's estimate depends on: doublings of degrees, and switches."""
    values = {**space.values, **changes}
    found = degrees(values, space.world_size)
    sizes = (found.dp, found.tp, found.pp, found.cp, found.ep, found.vpp, int(values[MICRO]))
    recompute = values.get(GRANULARITY)
    switches = (
        values.get(SEQUENCE),
        values.get(DISTRIBUTED),
        recompute == "full",
        recompute == "selective",
        not is_estimated,
    )
    return (*map(log2, sizes), *(float(bool(one)) for one in switches))


def learnt(entries: Sequence[Mapping[str, Any]], prior: Prior) -> Known:
    """Return the constants refitted to all trials that were measured, and the errors that remain."""
    expected = {key_of(one.changes): one for one in prior.candidates}
    tried = [
        (one, entry)
        for entry in entries
        if entry["state"] == "measured" and (one := expected.get(key_of(entry["changes"])))
    ]
    if not tried:
        return Known(capacity=prior.capacity)
    times = [(one.seconds, float(entry["seconds"])) for one, entry in tried]
    memories = [
        (one.reported_bytes, float(entry["mem_bytes"]))
        for one, entry in tried
        if one.reported_bytes and entry.get("mem_bytes")
    ]
    # A machine may be far from its figures, but its estimates have the right proportions.
    unit = median(measured / expected for expected, measured in times)
    fit = fitted([(unit * expected, measured) for expected, measured in times], memories)
    calibration = replace(fit, scale=unit * fit.scale)
    low, high = prior.factors
    ratios = [log(measured / expected) for expected, measured in times]
    beyond = max(0.0, log(low) - min(ratios), max(ratios) - log(high))
    error = max(prior.error, UNRELIABLE, beyond) if beyond else prior.error
    rows = [
        (
            one.features,
            calibration.seconds(one.seconds),
            float(entry["seconds"]),
            noise_of(entry.get("iterations") or ()),
        )
        for one, entry in tried
    ]
    return Known(calibration, residuals(rows, len(rows[0][0]), error), prior.capacity)
