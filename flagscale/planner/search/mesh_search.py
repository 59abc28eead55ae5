"""Search for the fastest pipelines: which pools take part, in which order, with which degrees and stages.

The candidates of a dynamic program (`mesh_candidates.py`) are rated by `layer_split.best_split`. For small
clusters, all combinations whose bound is better than the best rating are rated, too, so that the best of all
is found.

Imports numpy: see `layer_split.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod

import numpy as np

from flagscale.planner.search.layer_split import Part, Pipeline, Split, best_split
from flagscale.planner.search.mesh_candidates import candidates, enumerated
from flagscale.planner.search.mesh_options import Mode
from flagscale.planner.search.space import Counts, Setup, Space, orders, setups

_COARSE, _FINE = 12, 32
"""Points of the grids of limits."""
_SLOWER = 1.1
"""Relative to the best: plans that are slower than it by up to a tenth show what the choice costs."""


def variants(space: Space, setup: Setup, parts: Sequence[Part]) -> Iterator[Pipeline]:
    """Yield a pipeline of some meshes, interleaved in all legal ways or with extra micro-batches."""
    pools, m = space.cluster.pools, setup.micro_batches
    crossings = tuple(
        space.costs.crossing((pools[one.pool], one.degrees), (pools[two.pool], two.degrees))
        for one, two in pairwise(parts)
    )
    plain = Pipeline(tuple(parts), m, crossings)
    yield plain
    # More micro-batches in flight cost memory, and gain nothing if messages do not delay the stages.
    if crossings and plain.pace(1.0) > 1.0:
        yield Pipeline(tuple(parts), m, crossings, extra=1)
        yield Pipeline(tuple(parts), m, crossings, extra=2)
    stages = plain.stages
    # The engine's rule for interleaved pipelines (`checks.pipeline.interleaving_violation`).
    if stages > 1 and m % stages == 0:
        for chunks in range(2, min(space.layers // stages, space.chunks) + 1):
            yield Pipeline(tuple(parts), m, crossings, chunks)


class Best:
    """The fastest pipelines so far."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.found: list[tuple[float, Mode, Split]] = []
        self.seen: set[object] = set()
        self.rated = 0

    @property
    def seconds(self) -> float:
        return self.found[0][0] if self.found else np.inf

    @property
    def limit(self) -> float:
        """A pipeline that takes longer is none of the best."""
        return self.found[-1][0] if len(self.found) == self.keep else np.inf

    def rate(self, space: Space, setup: Setup, parts: Sequence[Part]) -> None:
        """Rate all variants of some meshes, once."""
        key = (setup.mode, *((part.pool, part.degrees, part.pp) for part in parts))
        if key in self.seen:
            return
        self.seen.add(key)
        for pipeline in variants(space, setup, parts):
            self.rated += 1
            if split := best_split(pipeline, space.layers, self.limit):
                self.found.append((split.seconds, setup.mode, split))
                self.found.sort(key=lambda one: one[0])
                del self.found[self.keep :]

    def ranked(self) -> list[tuple[Mode, Split]]:
        """Return what was found, the fastest first."""
        return [(mode, split) for _, mode, split in self.found]


def search(space: Space, keep: int = 20, exhaustive: int = 100_000) -> tuple[Best, Counts]:
    """Return the fastest pipelines and what was looked at.

    With at most `exhaustive` combinations, the first one is the fastest of all (by the quick rating).
    """
    found = [(_bound(space, setup), setup) for setup in setups(space)]
    found.sort(key=lambda one: one[0])
    best = Best(keep)
    promising = []
    for bound, setup in found:
        if bound < best.seconds:
            m = setup.micro_batches
            coarse = candidates(space, setup, bound / m, _SLOWER * best.seconds / m, _COARSE)
            promising.append((min((one.least for one in coarse), default=np.inf), setup))
            for one in coarse[:3]:
                best.rate(space, setup, one.parts)
    fine = []
    for least, setup in promising:
        limit = min(best.limit, _SLOWER * best.seconds)
        if least < limit:
            m = setup.micro_batches
            fine += [(one, setup) for one in candidates(space, setup, least / m, limit / m, _FINE)]
    fine.sort(key=lambda one: one[0].seconds)
    for one, setup in fine[: 5 * keep]:
        best.rate(space, setup, one.parts)
    combined = sum(_combinations(space, setup) for _, setup in found)
    if combined <= exhaustive:
        for bound, setup in found:
            if bound < best.seconds:
                for parts in enumerated(space, setup, lambda: best.seconds):
                    best.rate(space, setup, parts)
    count = len({order for _, setup in found for order in orders(space, setup)})
    return best, Counts(combined=combined, rated=best.rated, orders=count)


def _bound(space: Space, setup: Setup) -> float:
    """Return seconds that no step can go below: all pools at their best, without a bubble."""
    rates = sorted(
        max((option.most_stages / option.costs.seconds for option in found), default=0.0)
        for found in setup.options
    )
    return setup.micro_batches * space.layers / sum(rates[-space.meshes :])


def _combinations(space: Space, setup: Setup) -> int:
    each = [sum(option.most_stages for option in found) for found in setup.options]
    return sum(prod(each[pool] for pool in order) for order in orders(space, setup))
