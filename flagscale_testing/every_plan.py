"""Rate every plan of a small cluster, one by one, and make such clusters at random."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise, permutations, product
from random import Random

from flagscale.checks.degrees import divisors
from flagscale.checks.hetero.layout import HeteroLayout, Mesh
from flagscale.frozen import replace
from flagscale.planner.chips import Chip, Link
from flagscale.planner.model_shape import ModelShape
from flagscale.planner.search.cluster import Cluster, Pool
from flagscale.planner.search.layer_split import Part, Pipeline, Split, rated
from flagscale.planner.search.mesh_costs import Costs
from flagscale.planner.search.mesh_options import MOST_TOKENS, Mode, legal_degrees, rule_values
from flagscale.planner.search.space import Space
from flagscale.planner.training import Block, Numerics, Training
from flagscale_testing.toy_costs import ToyCosts

SIZES = (
    *((8,), (12,), (16,), (4, 4), (8, 4), (4, 8), (8, 8), (12, 4)),
    *((2, 2, 2), (1, 2, 3), (2, 2, 4), (4, 2, 2), (2, 4, 4)),
)
"""Devices of each type."""


def random_space(seed: int) -> Space:
    """Return one to three types of chips with 16 devices at most, and a model of 8 layers."""
    random = Random(seed)
    sizes = random.choice(SIZES)
    pools = []
    for number, devices in enumerate(sizes):
        per_host = random.choice([one for one in divisors(devices) if one in (1, 2, 3, 4, 8)])
        chip = Chip(
            name=f"chip{number}",
            flop_s={"bfloat16": random.choice([100, 150, 300, 600, 1000]) * 1e12},
            memory_bytes=random.choice([12, 16, 24, 32, 80]) * 2**30,
            hbm_bytes_s=1e12,
            inside=Link(random.choice([25e9, 100e9, 300e9])),
            outside=Link(random.choice([1e9, 5e9, 25e9])),
        )
        pools.append(Pool(f"TYPE{number}", chip, devices // per_host, per_host))
    model = ModelShape(
        hidden=random.choice([2048, 4096]),
        heads=32,
        groups=8,
        head_dim=128,
        ffn=11008,
        vocabulary=32000,
        experts_in=(False,) * 8,
        attention="gqa",
        gated=True,
    )
    batch = random.choice([4, 8, 12, 16, 32])
    one = HeteroLayout((Mesh(layers=((8,),)),))
    training = Training(
        model,
        one,
        (Block(pools[0].chip, 1),),
        random.choice([2048, 4096]),
        batch,
        32000,
        numerics=Numerics(distributed=random.random() < 0.5),
    )
    return space_of(training, Cluster(tuple(pools)))


def space_of(training: Training, cluster: Cluster, costs: Costs | None = None) -> Space:
    """Return all that can be searched for a training without experts; the costs are toys unless given."""
    values, mode = rule_values(training), Mode()
    legal = {mode: [legal_degrees(training, values, pool, mode) for pool in cluster.pools]}
    costs = costs or ToyCosts(training)
    return Space(
        cluster,
        costs,
        training.model.layers,
        training.batch,
        legal,
        len(cluster.pools),
        MOST_TOKENS / training.sequence,
    )


def best_of_all(space: Space) -> tuple[Split | None, int]:
    """Return the best of all plans and how many there are, without the divisions of their layers.

    Those that would be fastest without a bubble come first; what would take longer than the best even so is
    counted and not rated.
    """
    plans = [
        (m * space.layers / sum(part.pp / part.costs.seconds for part in parts), m, parts)
        for parts, m in every_meshes(space)
    ]
    plans.sort(key=lambda one: one[0])
    best: Split | None = None
    for bound, m, parts in plans:
        if best and bound >= best.seconds:
            break
        for pipeline in _every_variant(space, parts, m):
            for layers in every_split(space.layers, pipeline.stages, pipeline.chunks):
                found = rated(pipeline, layers)
                if found and (not best or found.seconds < best.seconds):
                    best = found
    return best, len(plans)


def every_meshes(space: Space) -> Iterator[tuple[tuple[Part, ...], int]]:
    """Yield all meshes in all orders, each with the micro-batches of a step."""
    pools = space.cluster.pools
    for mode, legal in space.legal.items():
        for samples in divisors(space.batch):
            m = space.batch // samples
            each = [
                [*_every_part(space, mode, number, legal[number], samples)] for number in range(len(pools))
            ]
            for size in range(1, len(pools) + 1):
                for order in permutations(range(len(pools)), size):
                    for parts in product(*(each[number] for number in order)):
                        if sum(part.pp for part in parts) <= space.layers:
                            yield parts, m


def _every_part(space: Space, mode: Mode, number: int, legal: object, samples: int) -> Iterator[Part]:
    pool = space.cluster.pools[number]
    for one in legal:  # type: ignore[attr-defined]
        for dp in divisors(samples):
            per_stage = one.tp * one.cp * dp
            is_small = samples // dp <= max(1, space.most_micro_batch * one.cp)
            if is_small and dp % one.dp == 0 and per_stage <= pool.devices:
                degrees = one._replace(dp=dp, micro_batch=samples // dp)
                costs = space.costs.layer(pool, degrees, mode.modules, space.batch // samples)
                for pp in range(1, pool.devices // per_stage + 1):
                    yield Part(number, degrees, costs, pp)


def _every_variant(space: Space, parts: tuple[Part, ...], m: int) -> Iterator[Pipeline]:
    pools = space.cluster.pools
    crossings = tuple(
        space.costs.crossing((pools[one.pool], one.degrees), (pools[two.pool], two.degrees))
        for one, two in pairwise(parts)
    )
    plain = Pipeline(parts, m, crossings)
    yield plain
    if len(parts) > 1:
        yield replace(plain, extra=1)
        yield replace(plain, extra=2)
    if plain.stages > 1 and m % plain.stages == 0:
        for chunks in range(2, min(space.layers // plain.stages, space.chunks) + 1):
            yield replace(plain, chunks=chunks)


def every_split(layers: int, stages: int, least: int) -> Iterator[tuple[int, ...]]:
    for cuts in combinations(range(1, layers), stages - 1):
        split = tuple(end - start for start, end in zip((0, *cuts), (*cuts, layers), strict=True))
        if min(split) >= least:
            yield split
