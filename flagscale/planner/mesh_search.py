"""Search for the fastest pipelines: which pools take part, in which order, with which degrees and stages.

All meshes process the same samples per micro-step. For a number of samples, an order and a limit `T` on the
seconds of a stage, what a mesh can hold depends on the others only through the stages behind it, which
decide how many micro-batches its stages have in flight. So a dynamic program walks from the last stage to the
first: `most[T, P]` are the most layers that `P` stages can hold, for all limits of a grid at once. Its
candidates are rated by `layer_split.best_split`. For small clusters, all combinations whose bound is better
than the best rating are rated, too, so that the best of all is found.

Imports numpy: see `layer_split.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, permutations
from math import prod
from typing import Any, NamedTuple

import numpy as np

from flagscale.frozen import dataclass
from flagscale.planner.cluster import Cluster
from flagscale.planner.layer_split import Part, Pipeline, Split, best_split
from flagscale.planner.mesh_costs import Costs
from flagscale.planner.mesh_options import Mode, Option, divisors, options

_NONE = -(10**6)
"""Layers of a stage that cannot hold any."""
_COARSE, _FINE = 12, 32
"""Points of the grids of limits."""
_AT_ONCE = 500_000
"""Combinations in memory at a time."""
_NOWHERE = 100 * _NONE
"""Layers of stages that do not exist."""


@dataclass(frozen=True)
class Space:
    """What is searched."""

    cluster: Cluster
    costs: Costs
    layers: int
    batch: int
    legal: Any
    """For each mode: for each pool its legal `Ranks`."""
    meshes: int
    """The most meshes of a pipeline."""
    most_micro_batch: float
    """Samples on one rank, times its context parallelism."""
    stages: int = 64
    """The most stages of a pipeline."""
    chunks: int = 8
    """The most model chunks of a stage."""


class Setup(NamedTuple):
    """The part of a space with one mode and one number of samples per micro-step."""

    mode: Mode
    micro_batches: int
    options: tuple[tuple[Option, ...], ...]
    """Of each pool."""


class Counts(NamedTuple):
    """What a search has looked at."""

    combined: int = 0
    """Combinations of order, degrees and stages, without options that others beat in every respect."""
    rated: int = 0
    """Pipelines whose best layers were computed."""
    orders: int = 0


def setups(space: Space) -> list[Setup]:
    """Return all parts of the space that have any option."""
    found = []
    for mode, legal in space.legal.items():
        for samples in divisors(space.batch):
            m = space.batch // samples
            each = tuple(
                tuple(
                    options(ranks, pool, space.costs, mode, samples, m, space.stages, space.most_micro_batch)
                )
                for pool, ranks in zip(space.cluster.pools, legal, strict=True)
            )
            if any(each):
                found.append(Setup(mode, m, each))
    return found


def orders(space: Space, setup: Setup) -> Iterator[tuple[int, ...]]:
    """Yield the orders of pools that can take part."""
    able = [number for number, found in enumerate(setup.options) if found]
    for size in range(1, min(space.meshes, len(able)) + 1):
        yield from permutations(able, size)


def variants(space: Space, setup: Setup, parts: Sequence[Part]) -> Iterator[Pipeline]:
    """Yield a pipeline of some meshes, interleaved in all legal ways or with extra micro-batches."""
    pools, m = space.cluster.pools, setup.micro_batches
    crossings = tuple(
        space.costs.crossing((pools[one.pool], one.ranks), (pools[two.pool], two.ranks))
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
        key = (setup.mode, *((part.pool, part.ranks, part.pp) for part in parts))
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


def search(space: Space, keep: int = 12, exhaustive: int = 100_000) -> tuple[Best, Counts]:
    """Return the fastest pipelines and what was looked at.

    With at most `exhaustive` combinations, the first one is the fastest of all (by the quick rating).
    """
    found = [(_bound(space, setup), setup) for setup in setups(space)]
    found.sort(key=lambda one: one[0])
    best = Best(keep)
    promising = []
    for bound, setup in found:
        if bound < best.seconds:
            coarse = _candidates(space, setup, bound / setup.micro_batches, np.inf, _COARSE)
            promising.append((min((one.least for one in coarse), default=np.inf), setup))
            for one in coarse[:3]:
                best.rate(space, setup, one.parts)
    fine = []
    for least, setup in promising:
        # Among the best are also those that are slower by a tenth: they show what the choice costs.
        limit = min(best.limit, 1.1 * best.seconds)
        if least < limit:
            m = setup.micro_batches
            fine += [(one, setup) for one in _candidates(space, setup, least / m, limit / m, _FINE)]
    fine.sort(key=lambda one: one[0].seconds)
    for one, setup in fine[: 8 * keep]:
        best.rate(space, setup, one.parts)
    combined = sum(_combinations(space, setup) for _, setup in found)
    if combined <= exhaustive:
        for bound, setup in found:
            if bound < best.seconds:
                for parts in enumerated(space, setup, best):
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


class Candidate(NamedTuple):
    """Meshes that may be among the best."""

    seconds: float
    """Roughly those of a step."""
    least: float
    """Those that no division of the layers over as many stages, in this order, can go below."""
    parts: tuple[Part, ...]


def _candidates(space: Space, setup: Setup, low: float, high: float, points: int) -> list[Candidate]:
    """Return the meshes that hold all layers within the least limit, for each order and number of stages.

    The limits, on the seconds of a stage, are a grid from `low` to `high`; the fastest come first.
    """
    limits = np.geomspace(low, min(high, 8 * low) * (1 + 1e-9), points)
    stages = min(space.stages, space.layers)
    grids = [_Grid(found, limits, stages, setup.micro_batches) if found else None for found in setup.options]
    found = [one for one in _of_one_stage(space, setup) if one.least < high * setup.micro_batches]
    m, number = setup.micro_batches, np.arange(stages + 1)
    chunks = np.minimum(space.layers // np.maximum(number, 1), space.chunks)
    chunks = np.where(m % np.maximum(number, 1) == 0, np.maximum(chunks, 1), 1)

    def visit(later: list[tuple[int, Any]]) -> None:
        """Put each pool that is left in front of the meshes `later`, each with its `most` (see above)."""
        for pool, grid in enumerate(grids):
            if grid is None or pool in [one for one, _ in later]:
                continue
            most = later[-1][1] if later else None
            holds = grid.closed(most) >= space.layers
            for count in np.nonzero(holds.any(axis=0))[0]:
                at = int(holds[:, count].argmax())
                seconds = limits[at] * (m + (count - 1) / chunks[count])
                least = m * (limits[at - 1] if at else low)
                found.append(Candidate(seconds, least, trace(pool, later, at, int(count))))
            if len(later) + 1 < space.meshes:
                visit([*later, (pool, grid.opened(most))])

    def trace(pool: int, later: list[tuple[int, Any]], at: int, count: int) -> tuple[Part, ...]:
        parts, is_first = [], True
        for depth in range(len(later), -1, -1):
            most = later[depth - 1][1][at] if depth else None
            grid = grids[pool]
            assert grid is not None
            option, behind = grid.chosen(most, at, count, is_first)
            one = setup.options[pool][option]
            parts.append(Part(pool, one.ranks, one.costs, count - behind))
            count, is_first = behind, False
            pool = later[depth - 1][0] if depth else -1
        return tuple(parts)

    visit([])
    return sorted(found, key=lambda one: one.seconds)


def _of_one_stage(space: Space, setup: Setup) -> Iterator[Candidate]:
    """Yield the pipelines of a single stage, which is the first and the last one."""
    for pool, found in enumerate(setup.options):
        for option in found:
            costs = option.costs
            seconds = space.layers * costs.seconds + costs.first_seconds + costs.last_seconds
            step = setup.micro_batches * seconds
            yield Candidate(step, step, (Part(pool, option.ranks, costs, 1),))


def enumerated(space: Space, setup: Setup, best: Best) -> Iterator[tuple[Part, ...]]:
    """Yield all combinations of meshes whose bound is better than the best, the most promising first."""
    stages, m = min(space.stages, space.layers), setup.micro_batches
    for one in _of_one_stage(space, setup):
        if one.least < best.seconds:
            yield one.parts
    # Without a best one yet, no stage can be slower than one with all layers.
    all_costs = [option.costs for found in setup.options for option in found]
    slowest = max(
        space.layers * (one.seconds + one.again) + one.first_seconds + one.last_seconds for one in all_costs
    )
    limits = np.array([min(best.seconds / m, slowest)])
    grids = [_Grid(found, limits, stages, m) if found else None for found in setup.options]
    for order in orders(space, setup):
        each = [_pairs(setup.options[pool]) for pool in order]
        for bound, chosen in _better(space, setup, order, each, grids, best):
            if bound >= best.seconds:
                break
            yield tuple(
                Part(pool, (one := setup.options[pool][pairs[row, 0]]).ranks, one.costs, int(pairs[row, 1]))
                for pool, pairs, row in zip(order, each, chosen, strict=True)
            )


def _pairs(found: Sequence[Option]) -> Any:
    """Return all pairs of an option and its number of stages."""
    return np.array(
        [
            (number, stages)
            for number, option in enumerate(found)
            for stages in range(1, option.most_stages + 1)
        ]
    )


def _better(
    space: Space, setup: Setup, order: Sequence[int], each: Sequence[Any], grids: Sequence[Any], best: Best
) -> list[tuple[float, tuple[int, ...]]]:
    """Return bounds on the seconds of a step, and rows of `each`, of combinations that may beat the best."""
    m, layers, most = setup.micro_batches, space.layers, min(space.stages, space.layers)
    seconds = [
        np.array([setup.options[pool][option].costs.seconds for option in pairs[:, 0]])
        for pool, pairs in zip(order, each, strict=True)
    ]
    found = []
    later = prod(map(len, each[1:]))
    step = max(1, _AT_ONCE // later)
    for start in range(0, len(each[0]), step):
        # All combinations of these first meshes with the later ones, from the last mesh to the first.
        rows: list[Any] = []
        behind, holds, rate = np.zeros(1, int), np.zeros(1, int), np.zeros(1)
        fastest = np.full(1, np.inf)
        for place in range(len(order) - 1, -1, -1):
            added = (
                np.arange(start, min(start + step, len(each[0])))
                if not place
                else np.arange(len(each[place]))
            )
            old, new = (one.ravel() for one in np.meshgrid(np.arange(len(behind)), added, indexing="ij"))
            option, more = each[place][new].T
            fits = behind[old] + more <= most
            old, new, option, more = old[fits], new[fits], option[fits], more[fits]
            rows = [new, *(one[old] for one in rows)]
            behind, holds, rate, fastest = behind[old], holds[old], rate[old], fastest[old]
            total, took = behind + more, seconds[place][new]
            grid = grids[order[place]]
            table = (grid.last if place == len(order) - 1 else grid.middle)[0]
            ends = (
                grid.first[0][option, total - 1] + table[option, total - 1]
                if not place
                else table[option, total]
            )
            holds = holds + ends - table[option, behind]
            rate, fastest, behind = rate + more / took, np.minimum(fastest, took), total
        slowest = layers / rate
        chunks = np.minimum(layers // behind, space.chunks)
        chunks = np.where(m % behind == 0, np.maximum(chunks, 1), 1)
        bound = m * slowest + np.maximum(layers * fastest - slowest, 0) / chunks
        keep = np.nonzero((holds >= layers) & (bound < best.seconds) & (behind > 1))[0]
        found += [(float(bound[one]), tuple(int(column[one]) for column in rows)) for one in keep]
    return sorted(found)


class _Grid:
    """The layers that stages of one pool's options hold, for all limits `T` and stages behind.

    `middle[T, option, P]`: of the stages with up to `P - 1` stages behind them; `last` if one of them is the
    last of the pipeline; `first` is what replaces the step to `P` if that is the pipeline's first stage.
    """

    def __init__(self, found: Sequence[Option], limits: Any, stages: int, micro_batches: int) -> None:
        costs = np.array([option.costs for option in found])
        q = np.minimum(np.arange(1, stages + 1), micro_batches)
        self.most = np.array([option.most_stages for option in found])
        held = _held(costs, limits, q, 0, 0)
        ends = [costs[:, 7], costs[:, 8]], [costs[:, 9], costs[:, 10]]
        self.middle = _summed(held)
        top = _held(costs, limits, q, *ends[0])
        held[:, :, :1] = _held(costs, limits, q[:1], *ends[1])
        self.last = _summed(held)
        self.first = top

    def opened(self, most: Any) -> Any:
        """Return the most layers [T, P] with a mesh in front of stages that hold `most`; None: of none."""
        return self._extended(most, self.middle if most is not None else self.last)

    def closed(self, most: Any) -> Any:
        """Return the same if the mesh is the first one of the pipeline."""
        return self._extended(most, self._closing(most is None))

    def _closing(self, is_last: bool) -> Any:
        table = self.last if is_last else self.middle
        found = table.copy()
        found[:, :, 1:] = table[:, :, :-1] + self.first
        found[:, :, 1] = found[:, :, 1] if not is_last else _NONE  # see `_of_one_stage`
        return found

    def _extended(self, most: Any, ends: Any) -> Any:
        count = ends.shape[2]
        found = np.full((ends.shape[0], count), _NOWHERE, np.int32)
        if most is None:
            for stages in range(1, count):
                able = self.most >= stages
                if able.any():
                    found[:, stages] = ends[:, able, stages].max(axis=1)
            return found
        for window in np.unique(self.most):
            of = self.most == window
            # The best place to begin, among the `window` numbers of stages before each one.
            value = _windowed(most[:, None, :] - self.middle[:, of], int(min(window, count - 1)))
            np.maximum(found[:, 1:], (value[:, :, :-1] + ends[:, of, 1:]).max(axis=1), out=found[:, 1:])
        return found

    def chosen(self, most: Any, at: int, stages: int, is_first: bool) -> tuple[int, int]:
        """Return the option that holds the most layers up to `stages`, and the stages behind it."""
        table = (self.last if most is None else self.middle)[at]
        ends = self.first[at][:, stages - 1] + table[:, stages - 1] if is_first else table[:, stages]
        behind = np.arange(stages)
        before = np.where(behind == 0, 0, _NOWHERE) if most is None else most[:stages]
        value = before[None] + ends[:, None] - table[:, :stages]
        value = np.where(stages - behind[None] <= self.most[:, None], value, _NOWHERE)
        option, start = np.unravel_index(value.argmax(), value.shape)
        return int(option), int(start)


def _windowed(value: Any, width: int) -> Any:
    """Return, along the last axis, the largest of each number and the `width - 1` numbers before it."""
    found, size = value, 1
    while size < width:
        step = min(size, width - size)
        wider = found.copy()
        np.maximum(found[..., step:], found[..., :-step], out=wider[..., step:])
        found, size = wider, size + step
    return found


def _held(costs: Any, limits: Any, q: Any, seconds: Any, nbytes: Any) -> Any:
    """Return the layers of stages [T, option, q] if a real number of layers may be recomputed.

    An upper bound of what `layer_split` finds: it recomputes whole layers, and holds no fewer micro-batches.
    """
    layer, again, static, kept, kept_again, fixed, _, *_, room = costs.T[:, :, None]
    time = limits[:, None, None] - (seconds[:, None] if np.ndim(seconds) else 0)
    left = room - fixed - (nbytes[:, None] if np.ndim(nbytes) else 0)
    each, saved = static + q * kept, q * np.maximum(kept - kept_again, 0)
    # With `k` layers recomputed, `n layer + k again = time` and `n each - k saved = left - kept`.
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(saved > 0, 1 / (layer + again * each / saved), 0)
        offset = np.where(saved > 0, slope * again * (left - kept) / saved, 0)
        most = np.where(saved > 0, (left - kept) / (each - saved), 0)
    found = (time * slope[None]).astype(np.float32)
    found += offset[None].astype(np.float32)
    np.minimum(found, most[None], out=found, casting="same_kind")
    np.maximum(found, (left / each)[None], out=found, casting="same_kind")
    np.minimum(found, time / layer[None], out=found, casting="same_kind")
    held = (found * np.float32(1 + 1e-5)).astype(np.int32)
    held[held < 1] = _NONE
    return held


def _summed(held: Any) -> Any:
    none = np.zeros((*held.shape[:2], 1), np.int32)
    return np.concatenate([none, held.cumsum(axis=2, dtype=np.int32)], axis=2)
