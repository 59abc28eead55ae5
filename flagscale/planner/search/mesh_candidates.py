"""Candidates for the fastest pipelines: by a dynamic program, or all whose bound is good enough.

All meshes process the same samples per micro-step. For a number of samples, an order and a limit `T` on the
seconds of a stage, what a mesh can hold depends on the others only through the stages behind it, which decide
how many micro-batches its stages have in flight. So the program walks from the last stage to the first:
`most[T, P]` are the most layers that `P` stages can hold, for all limits of a grid at once.

Imports numpy: see `layer_split.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from flagscale.planner.search.layer_split import Part
from flagscale.planner.search.mesh_options import Option
from flagscale.planner.search.space import Setup, Space, orders
from flagscale.planner.search.stage_grid import StageGrid

_AT_ONCE = 500_000
"""Combinations in memory at a time."""


class Candidate(NamedTuple):
    """Meshes that may be among the best."""

    seconds: float
    """Roughly those of a step."""
    least: float
    """Those that no division of the layers over as many stages, in this order, can go below."""
    parts: tuple[Part, ...]


def candidates(space: Space, setup: Setup, low: float, high: float, points: int) -> list[Candidate]:
    """Return the meshes that hold all layers within the least limit, for each order and number of stages.

    The limits, on the seconds of a stage, are a grid from `low` to `high`; the fastest come first.
    """
    limits = np.geomspace(low, min(high, 8 * low) * (1 + 1e-9), points)
    stages = min(space.stages, space.layers)
    grids = [
        StageGrid(found, limits, stages, setup.micro_batches) if found else None for found in setup.options
    ]
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
            parts.append(Part(pool, one.degrees, one.costs, count - behind))
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
            yield Candidate(step, step, (Part(pool, option.degrees, costs, 1),))


def enumerated(space: Space, setup: Setup, fastest: Callable[[], float]) -> Iterator[tuple[Part, ...]]:
    """Yield all combinations of meshes whose bound is below `fastest()`, the best of an order first."""
    stages, m = min(space.stages, space.layers), setup.micro_batches
    for one in _of_one_stage(space, setup):
        if one.least < fastest():
            yield one.parts
    # Without a best one yet, no stage can be slower than one with all layers.
    all_costs = [option.costs for found in setup.options for option in found]
    slowest = max(
        space.layers * (one.seconds + one.recompute) + one.first_seconds + one.last_seconds
        for one in all_costs
    )
    limits = np.array([min(fastest() / m, slowest)])
    grids = [StageGrid(found, limits, stages, m) if found else None for found in setup.options]
    for order in orders(space, setup):
        each = [_pairs(setup.options[pool]) for pool in order]
        for bound, chosen in _better(space, setup, order, each, grids, fastest()):
            if bound >= fastest():
                break
            yield tuple(
                Part(pool, (one := setup.options[pool][pairs[row, 0]]).degrees, one.costs, int(pairs[row, 1]))
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
    space: Space, setup: Setup, order: Sequence[int], each: Sequence[Any], grids: Sequence[Any], limit: float
) -> list[tuple[float, tuple[int, ...]]]:
    """Return bounds on the seconds of a step, and rows of `each`, of what may stay below a limit."""
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
        keep = np.nonzero((holds >= layers) & (bound < limit) & (behind > 1))[0]
        found += [(float(bound[one]), tuple(int(column[one]) for column in rows)) for one in keep]
    return sorted(found)
