"""The candidates of a job with their estimates, and what the trials so far have taught about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flagscale.checks.degrees import degrees
from flagscale.formats import quantity
from flagscale.frozen import dataclass
from flagscale.planner.calibration import fitted
from flagscale.planner.propose import Candidate, Known, key_of
from flagscale.planner.rough import rough_cost
from flagscale.planner.space import (
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

Estimator = Callable[[Changes], Candidate]


@dataclass(frozen=True)
class Basis:
    """How candidates of a job are estimated."""

    estimate: Estimator
    capacity: float = 0.0
    """Bytes that a process can use on a device; 0: unknown."""
    has_estimates: bool = False
    notice: str = ""
    """Why there are no estimates, or none of the memory."""


def rough_basis(space: Space, batch: int, why: str, capacity: float = 0.0) -> Basis:
    """Return the basis without a chip or a model: candidates are only ranked."""

    def estimate(changes: Changes) -> Candidate:
        return Candidate(changes, rough_cost({**space.values, **changes}, space.world_size, batch))

    notice = (
        f"no estimates: {why}; candidates are ranked by the work of a rank and the bubble of the pipeline"
    )
    return Basis(estimate, capacity, has_estimates=False, notice=notice)


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
    from flagscale.planner.space import DIMENSIONS

    return {*space.choices} - {*DIMENSIONS}


def learnt(candidates: Sequence[Candidate], entries: Sequence[Mapping[str, Any]], basis: Basis) -> Known:
    """Return the constants refitted to all trials that were measured."""
    expected = {key_of(one.changes): one for one in candidates}
    times, memories = [], []
    for entry in entries:
        one = expected.get(key_of(entry["changes"]))
        if one and entry["state"] == "measured":
            times.append((one.seconds, float(entry["seconds"])))
            if one.reported_bytes and entry.get("mem_bytes"):
                memories.append((one.reported_bytes, float(entry["mem_bytes"])))
    calibration = fitted(times, memories) if times and basis.has_estimates else None
    return Known(calibration, basis.capacity, basis.has_estimates)


def seconds_text(seconds: float | None) -> str:
    """Return a time per step for people: `131 ms`, or `2.35 s`."""
    if not seconds:
        return "-"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def bytes_text(nbytes: float | None) -> str:
    """Return an amount of memory for people: `3.12 GiB`."""
    if not nbytes:
        return "-"
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 else f"{quantity(nbytes / 2**20)} MiB"
