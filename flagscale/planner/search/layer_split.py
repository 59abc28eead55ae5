"""The best layers of every stage of a pipeline whose meshes are decided, and how long its step then takes.

A quick rating, for searches: with `t` the seconds of a stage for one micro-batch and `T` those of the slowest
stage, a step of `m` micro-batches in `v` model chunks takes `(m - 1) pace + T + (sum of t - T) / v` and the
messages that fill and drain the pipeline. The pace is `T` unless messages between meshes take longer than the
micro-batches in flight can hide. Every stage recomputes as few layers as its memory allows.

Imports numpy: only searches import this module, when they start.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from flagscale.frozen import dataclass
from flagscale.planner.search.mesh_costs import LayerCosts, MeshDegrees

Table = Any
"""An array of one row per stage and one column per number of layers."""


class Part(NamedTuple):
    """One mesh of a pipeline."""

    pool: int
    """The number of its pool in the cluster."""
    degrees: MeshDegrees
    costs: LayerCosts
    pp: int


@dataclass(frozen=True)
class Pipeline:
    """Meshes in their order, without the layers of their stages."""

    parts: tuple[Part, ...]
    micro_batches: int
    crossings: tuple[float, ...] = ()
    """Seconds of one message over each boundary between meshes."""
    chunks: int = 1
    extra: int = 0
    """Extra micro-batches in flight for each boundary between meshes."""

    @property
    def stages(self) -> int:
        return sum(part.pp for part in self.parts)

    @property
    def of_stages(self) -> list[LayerCosts]:
        """The costs of the mesh of each stage."""
        return [part.costs for part in self.parts for _ in range(part.pp)]

    @property
    def in_flight(self) -> list[float]:
        """For each stage, the micro-batches that it holds at most: `HeteroLayout.warm_up` + 1."""
        m, v, behind = self.micro_batches, self.chunks, self.stages
        found: list[float] = []
        for number, part in enumerate(self.parts):
            crossed = (len(self.parts) - 1 - number) * self.extra
            for _ in range(part.pp):
                behind -= 1
                if v > 1:
                    found.append(min(m * v, 2 * behind + (v - 1) * self.stages + 1) / v)
                else:
                    found.append(min(m, behind + crossed + 1))
        return found

    @property
    def hand_over(self) -> float:
        """The seconds per micro-batch in which a stage waits for its own messages.

        The engine overlaps messages if the pipeline is interleaved, we do if there are several meshes.
        """
        is_alone = len(self.parts) == 1 and self.chunks == 1 and self.stages > 1
        return self.parts[0].costs.hand_over if is_alone else 0.0

    def pace(self, slowest: float) -> float:
        """Return the seconds from one micro-batch to the next if the slowest stage takes `slowest`."""
        if self.chunks > 1:
            return slowest
        found, waited, stages = slowest, 0.0, 0
        for number in range(len(self.parts) - 1, 0, -1):
            waited += 2 * self.crossings[number - 1]
            stages += self.parts[number].pp
            # The stage before the boundary gets a micro-batch back after all later stages and messages.
            round_trip = (stages + 1) * slowest + waited
            ahead = stages + 1 + (len(self.parts) - number) * self.extra
            found = max(found, round_trip / ahead)
        return found

    def seconds(self, slowest: float, total: float) -> float:
        """Return the seconds of a step; `total`: the seconds of all stages for one micro-batch."""
        m, v = self.micro_batches, self.chunks
        messages = 2 * v * sum(self.crossings)
        return (m - 1) * self.pace(slowest) + slowest + (total - slowest) / v + messages


class Split(NamedTuple):
    """A pipeline with the layers of its stages."""

    seconds: float
    pipeline: Pipeline
    layers: tuple[int, ...]
    """Of every stage."""
    recomputed: tuple[int, ...]
    """How many of them are recomputed."""


def rated(pipeline: Pipeline, layers: Sequence[int]) -> Split | None:
    """Return the rating of a pipeline with given layers per stage; None if a stage does not fit."""
    last, hand_over = len(layers) - 1, pipeline.hand_over
    seconds: list[float] = []
    recomputed: list[int] = []
    for stage, (count, of, in_flight) in enumerate(
        zip(layers, pipeline.of_stages, pipeline.in_flight, strict=True)
    ):
        took = count * of.seconds + hand_over
        nbytes = count * (of.static + in_flight * of.kept) + of.fixed
        if stage == 0:
            took, nbytes = took + of.first_seconds, nbytes + of.first_bytes
        if stage == last:
            took, nbytes = took + of.last_seconds, nbytes + of.last_bytes
        again = _least_again(of, in_flight, nbytes - of.room)
        if again > count or count < pipeline.chunks:
            return None
        seconds.append(took + again * of.recompute)
        recomputed.append(again)
    step = pipeline.seconds(max(seconds), sum(seconds))
    return Split(step, pipeline, tuple(layers), tuple(recomputed))


def _least_again(of: LayerCosts, in_flight: float, over: float) -> int:
    """Return how many layers must be recomputed to save the bytes that are `over`, if any number can."""
    if over <= 0:
        return 0
    # What a recomputed layer keeps otherwise is there while its backward pass runs.
    return ceil((over + of.kept) / (in_flight * of.saved)) if of.saved > 0 else sys.maxsize


def best_split(pipeline: Pipeline, layers: int, limit: float = np.inf) -> Split | None:
    """Return the fastest way to divide the layers over the stages; None if none fits or beats `limit`."""
    if _least_seconds(pipeline, layers) >= limit:
        return None
    table, again = _tables(pipeline, layers)
    v, stages = pipeline.chunks, pipeline.stages
    first = table[:, v] if layers >= v else np.array([np.inf])
    if stages * v > layers or not np.isfinite(first).all():
        return None
    counted = table[:, 1:].copy()
    counted[:, : v - 1] = first[:, None]
    values = np.sort(counted[np.isfinite(counted)])
    if len(values) < layers:
        return None
    fastest = max(values[layers - 1], first.max())
    # No division has a smaller sum: the layers that are left, in the fastest stage.
    least = first.sum() + (layers - stages * v) * min(part.costs.seconds for part in pipeline.parts)
    best: tuple[float, Any] = (limit, None)
    for slowest in np.unique(values[values >= fastest]):
        if pipeline.seconds(slowest, max(least, slowest)) >= best[0]:
            break
        total, numbers = _fill(table, layers, v, slowest)
        reached = float(table[np.arange(stages), numbers].max())
        step = pipeline.seconds(reached, total)
        if step < best[0]:
            best = (step, numbers)
        if total <= least:
            break  # a slower pace gains nothing more
    if best[1] is None:
        return None
    chosen = tuple(map(int, best[1]))
    return Split(float(best[0]), pipeline, chosen, tuple(int(again[s, n]) for s, n in enumerate(chosen)))


def _least_seconds(pipeline: Pipeline, layers: int) -> float:
    """Return seconds that no division goes below: parts of layers, no ends, enough memory."""
    rate = sum(part.pp / part.costs.seconds for part in pipeline.parts)
    fastest = min(part.costs.seconds for part in pipeline.parts)
    return pipeline.seconds(layers / rate, layers * fastest)


def _tables(pipeline: Pipeline, layers: int) -> tuple[Table, Table]:
    """Return seconds and recomputed layers of every stage with 0 to `layers` layers (as `rated`)."""
    costs = np.array(pipeline.of_stages)
    seconds, again, static, kept, kept_recomputed, fixed, _ = costs[:, :7].T[:, :, None]
    first_s, first_b, last_s, last_b, room = costs[:, 7:].T
    ends, more = np.zeros(len(costs)), np.zeros(len(costs))
    ends[0], more[0] = first_s[0], first_b[0]
    ends[-1], more[-1] = ends[-1] + last_s[-1], more[-1] + last_b[-1]
    number, q = np.arange(layers + 1)[None, :], np.array(pipeline.in_flight)[:, None]
    over = number * (static + q * kept) + fixed + more[:, None] - room[:, None]
    saved = np.maximum(kept - kept_recomputed, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        counts = np.ceil((over + kept) / (q * saved))
    counts = np.where(over > 0, counts, 0)
    table = number * seconds + ends[:, None] + pipeline.hand_over
    with np.errstate(invalid="ignore"):
        table = np.where(counts <= number, table + counts * again, np.inf)
    table[:, : min(pipeline.chunks, layers + 1)] = np.inf
    return table, np.where(np.isfinite(table), counts, 0)


def _fill(table: Table, layers: int, least: int, slowest: float) -> tuple[float, Any]:
    """Return the least sum of seconds of stages that take `slowest` at most each, and their layers."""
    stages = len(table)
    allowed = np.where(table <= slowest, table, np.inf)
    with np.errstate(invalid="ignore"):
        steps = np.diff(allowed[:, least:], axis=1)
    steps[~np.isfinite(allowed[:, least + 1 :])] = np.inf
    rows = np.arange(stages)
    with np.errstate(invalid="ignore"):
        is_convex = bool(
            (np.diff(steps, axis=1) >= -1e-12 * steps[:, :1]).all(where=np.isfinite(steps[:, 1:]))
        )
    if is_convex:
        more = layers - stages * least
        chosen = np.argsort(steps, axis=None, kind="stable")[:more] // max(steps.shape[1], 1)
        numbers = least + np.bincount(chosen, minlength=stages)
        return float(allowed[rows, numbers].sum()), numbers
    return _knapsack(allowed, layers, least)


def _knapsack(allowed: Table, layers: int, least: int) -> tuple[float, Any]:
    """Do the same where one more recomputed layer costs more than the layer after it."""
    most = int(np.isfinite(allowed).any(axis=0).nonzero()[0].max())
    best = np.full(layers + 1 + most, np.inf)
    best[most] = 0.0
    taken = []
    for row in allowed[:, : most + 1]:
        # In column `n`: what the stages before hold if this one holds `n` layers.
        before = np.lib.stride_tricks.sliding_window_view(best, most + 1)[:, ::-1]
        sums = before + row
        choice = sums.argmin(axis=1)
        best[most:] = sums[np.arange(layers + 1), choice]
        taken.append(choice)
    numbers, left = [], layers
    for choice in reversed(taken):
        numbers.append(choice[left])
        left -= choice[left]
    return float(best[-1]), np.array(numbers[::-1])
