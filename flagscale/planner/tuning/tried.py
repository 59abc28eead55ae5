"""What trials have shown of a space's candidates, and which of the fastest have to be tried again.

The smallest of many noisy times looks better than it is. So candidates that cannot be told apart from the
fastest one are repeated in turns, and the mean of all trials of a candidate is what counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from math import exp, log, sqrt
from statistics import fmean

from flagscale.frozen import dataclass
from flagscale.planner.tuning.residuals import LEAST_NOISE
from flagscale.planner.tuning.space import Changes

CONTENDERS = 3
"""As many of the fastest candidates are repeated, at most."""
TRIALS_EACH = 3
"""Trials of each of them, at most."""
_SIDE = 1.645
"""Standard deviations below which 95 % lie."""


@dataclass(frozen=True)
class Tried:
    """What a trial of a candidate has shown."""

    changes: Changes
    seconds: float | None = None
    """Per step; None: it was not measured."""
    is_out_of_memory: bool = False
    failure: str = ""
    """Why it was not measured."""
    noise: float = 0.0
    """The relative standard error of the time, as far as its own iterations show it."""


@dataclass(frozen=True)
class Standing:
    """What all trials of one candidate have shown together."""

    changes: Changes
    seconds: float
    """The mean time per step of the trials that were measured."""
    noise: float
    """Its relative standard error."""
    trials: int
    """Those that failed included."""


def key_of(changes: Changes) -> tuple[tuple[str, str], ...]:
    """Return changes as a key that does not depend on their order."""
    return tuple(sorted((name, repr(value)) for name, value in changes.items()))


def standings(tried: Sequence[Tried]) -> list[Standing]:
    """Return the candidates that were measured, fastest first."""
    groups: dict[tuple[tuple[str, str], ...], list[Tried]] = {}
    for one in tried:
        groups.setdefault(key_of(one.changes), []).append(one)
    between = _spread([[one.seconds for one in group if one.seconds] for group in groups.values()])
    found = []
    for group in groups.values():
        if times := [one.seconds for one in group if one.seconds]:
            each = max(LEAST_NOISE, between, *(one.noise for one in group))
            found.append(Standing(group[0].changes, fmean(times), each / sqrt(len(times)), len(group)))
    return sorted(found, key=lambda one: one.seconds)


def _spread(groups: Sequence[Sequence[float]]) -> float:
    """Return the relative standard deviation between equal trials; 0 if nothing was repeated."""
    squares = degrees = 0.0
    for times in groups:
        if len(times) > 1:
            middle = fmean(map(log, times))
            squares += sum((log(one) - middle) ** 2 for one in times)
            degrees += len(times) - 1
    return sqrt(squares / degrees) if degrees else 0.0


def contenders(found: Sequence[Standing]) -> list[Standing]:
    """Return those of the fastest candidates that cannot be told apart, with 95 %; empty if there is one."""
    close = list(takewhile(lambda one: not _is_slower(one, found[0]), found))[:CONTENDERS]
    return close if len(close) > 1 else []


def _is_slower(one: Standing, best: Standing) -> bool:
    return one.seconds > best.seconds * exp(_SIDE * sqrt(one.noise**2 + best.noise**2)) and one is not best


def to_repeat(found: Sequence[Standing]) -> Standing | None:
    """Return the contender to try again: the one with the fewest trials. None if that is not needed."""
    left = [one for one in contenders(found) if one.trials < TRIALS_EACH]
    return min(left, key=lambda one: one.trials, default=None)
