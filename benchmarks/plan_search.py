"""Measure the search of plans: `python -m benchmarks.plan_search`.

Three parts: clusters of one, two and three types of chips (CPU time, what is rated); the two types with every
combination bounded or rated; 200 random clusters of at most 16 devices, of which every plan is rated (about
five minutes; `--small 20` takes fewer). `--write` writes the tables into docs/planner.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import permutations
from math import prod
from pathlib import Path
from typing import NamedTuple

from benchmarks.layouts import write
from flagscale.checks.degrees import divisors
from flagscale.checks.hetero.layout import HeteroLayout, Mesh
from flagscale.planner.chips import find_chip
from flagscale.planner.model_shape import ModelShape
from flagscale.planner.search.cluster import Cluster, Pool
from flagscale.planner.search.mesh_search import search
from flagscale.planner.search.plans import best_plans, searched_space
from flagscale.planner.search.space import Space
from flagscale.planner.training import Block, Numerics, Training
from flagscale_testing.every_plan import best_of_all, random_space

DOCUMENT = Path(__file__).parents[1] / "docs" / "planner.md"
BEGIN, END = "<!-- search: begin -->", "<!-- search: end -->"

POOLS = {name: Pool(name, find_chip(name), 32, 8) for name in ("H100", "A100-40", "V100-32")}
ONE = Cluster((Pool("A100-40", find_chip("A100-40"), 16, 8),))
TWO = Cluster((POOLS["H100"], POOLS["A100-40"]))
THREE = Cluster(tuple(POOLS.values()))

MODEL = ModelShape(
    hidden=8192,
    heads=64,
    groups=8,
    head_dim=128,
    ffn=28672,
    vocabulary=128256,
    experts_in=(False,) * 80,
    attention="gqa",
    gated=True,
)
TRAINING = Training(
    MODEL,
    HeteroLayout((Mesh(layers=((80,),)),)),
    (Block(POOLS["H100"].chip, 1),),
    sequence=4096,
    batch=1024,
    padded_vocabulary=128256,
    numerics=Numerics(compute="float16", distributed=True),
)
"""80 layers like those of Llama 70B, in a precision that all three chips have."""


def main(argv: Sequence[str]) -> int:
    """Print the tables; return 1 if a search missed the best plan of a small cluster."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=200, metavar="N", help="random clusters (200)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="searches per cluster (5)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes for random clusters")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/planner.md")
    options = parser.parse_args(argv)
    missed, small = small_clusters(options.small, options.jobs)
    text = "\n".join([*speed(options.rounds), "", *every_combination(), "", *small])
    print(text)
    if options.write:
        write(DOCUMENT, text, BEGIN, END)
    return 1 if missed else 0


def speed(rounds: int) -> Iterator[str]:
    """Yield the table of clusters: CPU seconds of one search, the best of some rounds."""
    yield "| cluster | CPU seconds | combinations | rated | whole estimates | best plan | s per step |"
    yield "|---|---|---|---|---|---|---|"
    for cluster in (ONE, TWO, THREE):
        best = float("inf")
        for _ in range(rounds):
            start = time.process_time()
            found = best_plans(TRAINING, cluster)
            best = min(best, time.process_time() - start)
        name = " + ".join(f"{pool.devices} {pool.type}" for pool in cluster.pools)
        counts, plan = found.counts, found.best
        layout = " > ".join(f"{mesh.type}: {mesh}" for mesh in plan.training.layout.meshes)
        yield (
            f"| {name} | {best:.2f} | {counts.combined:,} | {counts.rated:,} | {found.estimated} | "
            f"{layout} | {plan.seconds:.2f} |"
        )


def every_combination() -> Iterator[str]:
    """Yield what bounding or rating all combinations of two types finds and costs."""
    space = searched_space(TRAINING, TWO)
    start = time.process_time()
    best, counts = search(space)
    middle = time.process_time()
    proven, all_counts = search(space, exhaustive=sys.maxsize)
    end = time.process_time()
    yield "| 256 H100 + 256 A100-40 | |"
    yield "|---|---|"
    yield f"| legal combinations of order, degrees and stages | {_legal(space):,} |"
    yield f"| without options that others beat in every respect | {counts.combined:,} |"
    yield f"| rated by the search | {counts.rated:,} in {middle - start:.2f} s |"
    what = "rated if all combinations are, but those with a bound that is no better than the best"
    yield f"| {what} | {all_counts.rated:,} in {end - middle:.1f} s |"
    yield f"| fewer ratings than combinations | {counts.combined / counts.rated:,.0f} x |"
    yield f"| the search is slower than the best of all by | {best.seconds / proven.seconds - 1:.2%} |"


def _legal(space: Space) -> int:
    """Return how many combinations the rules allow, whatever they cost."""
    total = 0
    for legal in space.legal.values():
        for samples in divisors(space.batch):
            each = [
                sum(
                    min(space.stages, pool.devices // (one.tp * one.cp * dp))
                    for one in degrees
                    for dp in divisors(samples)
                    if dp % one.dp == 0
                )
                for pool, degrees in zip(space.cluster.pools, legal, strict=True)
            ]
            sizes = range(1, space.meshes + 1)
            total += sum(prod(order) for size in sizes for order in permutations(each, size))
    return total


class Small(NamedTuple):
    """One random cluster."""

    is_best: bool
    """Whether the search found the best plan of all."""
    alone: float
    """By how much the plan of the dynamic program alone is slower."""
    plans: int
    search_s: float
    """CPU seconds of the search."""
    every_s: float
    """CPU seconds of rating every plan."""


def small_cluster(seed: int) -> Small:
    """Search one random cluster, and rate all of its plans."""
    space = random_space(seed)
    start = time.process_time()
    found = search(space)[0].seconds
    middle = time.process_time()
    expected, plans = best_of_all(space)
    end = time.process_time()
    best = expected.seconds if expected else float("inf")
    alone = search(space, exhaustive=0)[0].seconds / best - 1 if expected else 0.0
    return Small(found <= best * (1 + 1e-9), alone, plans, middle - start, end - middle)


def small_clusters(count: int, jobs: int) -> tuple[int, list[str]]:
    """Return how many searches missed the best plan, and the table."""
    with ProcessPoolExecutor(jobs) as pool:
        each = [*pool.map(small_cluster, range(count))]
    right = sum(one.is_best for one in each)
    missed, worst = sum(one.alone > 1e-9 for one in each), max(one.alone for one in each)
    search_s, every_s = (sum(times) / count for times in zip(*(one[3:] for one in each), strict=True))
    return count - right, [
        f"| {count} random clusters, 4 to 16 devices of 1 to 3 types, 8 layers | |",
        "|---|---|",
        f"| plans, without the divisions of their layers | {sum(one.plans for one in each):,} |",
        f"| best plan of all found | {right} of {count} |",
        f"| CPU seconds of a search, of rating every plan | {search_s:.3f}, {every_s:.1f} |",
        f"| missed by the dynamic program alone | {missed}, by {worst:.2%} at most |",
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
