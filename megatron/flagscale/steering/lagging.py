"""Find the ranks that compute longer than others with the same work, and name them.

A rank is compared with those of its pipeline stage, which compute the same layers on as many samples. Its
time is that of its forward and backward passes, without the transfers between stages and without the
reduction of gradients behind them, where the others wait for it. Ranks that exchange parts of a layer
(tensor, context and expert parallelism) wait for each other inside the passes: they are slow together.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

INTERVALS = 5
"""Logged iterations in a row in which a rank is slow before it is named: anything may delay a few of them."""


@dataclass(frozen=True)
class Lag:
    """A slow rank: `factor` times the median of its stage, in `intervals` logged iterations in a row."""

    rank: int
    factor: float
    intervals: int


def factors_of(seconds: Sequence[float], stages: Sequence[int]) -> list[float]:
    """Return, per rank, its seconds relative to the median rank of its stage; 1 if that is 0.

    The lower of the two middle ranks counts, so that of two ranks the slower one can be recognized.
    """
    of_stages: dict[int, list[float]] = {}
    for stage, own in zip(stages, seconds, strict=True):
        of_stages.setdefault(stage, []).append(own)
    medians = {stage: statistics.median_low(owns) for stage, owns in of_stages.items()}
    pairs = zip(stages, seconds, strict=True)
    return [own / medians[stage] if medians[stage] > 0 else 1.0 for stage, own in pairs]


def following(lags: Mapping[int, Lag], factors: Sequence[float], limit: float) -> dict[int, Lag]:
    """Return, by rank, the lags after one more logged iteration; a rank within the limit has none."""
    return {
        rank: Lag(rank, factor, lags[rank].intervals + 1 if rank in lags else 1)
        for rank, factor in enumerate(factors)
        if factor > limit
    }


def named(lags: Mapping[int, Lag]) -> list[Lag]:
    """Return the ranks that are slow for long enough, the slowest first."""
    return sorted((lag for lag in lags.values() if lag.intervals >= INTERVALS), key=lambda lag: -lag.factor)
