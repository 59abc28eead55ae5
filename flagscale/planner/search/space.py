"""The space of a search of plans: a training's legal degrees on a cluster, and their costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from typing import NamedTuple

from flagscale.checks.degrees import divisors
from flagscale.frozen import dataclass
from flagscale.planner.search.cluster import Cluster
from flagscale.planner.search.mesh_costs import Costs, MeshDegrees
from flagscale.planner.search.mesh_options import Mode, Option, options


@dataclass(frozen=True)
class Space:
    """The input of a search."""

    cluster: Cluster
    costs: Costs
    layers: int
    batch: int
    legal: Mapping[Mode, Sequence[Sequence[MeshDegrees]]]
    """For each mode: for each pool its legal `MeshDegrees`."""
    meshes: int
    """The most meshes of a pipeline."""
    most_micro_batch: float
    """Samples on one rank, times its context parallelism."""
    stages: int = 64
    """The most stages of a pipeline."""
    chunks: int = 8
    """The most model chunks of a stage."""
    common: int = 0
    """What the samples of a micro-step must divide: all sizes of a batch that grows; 0: the batch."""


class Setup(NamedTuple):
    """The part of a space with one mode and one number of samples per micro-step."""

    mode: Mode
    micro_batches: int
    options: tuple[tuple[Option, ...], ...]
    """Of each pool."""


class Counts(NamedTuple):
    """How much a search has looked at."""

    combined: int = 0
    """Combinations of order, degrees and stages, without options that others beat in every respect."""
    rated: int = 0
    """Pipelines whose best layers were computed."""
    orders: int = 0


def setups(space: Space) -> list[Setup]:
    """Return all parts of the space that have any option."""
    found = []
    for mode, legal in space.legal.items():
        for samples in divisors(space.common or space.batch):
            m = space.batch // samples
            each = tuple(
                tuple(
                    options(
                        degrees, pool, space.costs, mode, samples, m, space.stages, space.most_micro_batch
                    )
                )
                for pool, degrees in zip(space.cluster.pools, legal, strict=True)
            )
            if any(each):
                found.append(Setup(mode, m, each))
    return found


def orders(space: Space, setup: Setup) -> Iterator[tuple[int, ...]]:
    """Yield the orders of pools that can take part."""
    able = [number for number, found in enumerate(setup.options) if found]
    for size in range(1, min(space.meshes, len(able)) + 1):
        yield from permutations(able, size)
