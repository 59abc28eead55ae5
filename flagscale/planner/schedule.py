"""The order in which every stage of a pipeline works.

Megatron-core's schedules (`pipeline_parallel/schedules.py`, 0.19.2) have one form. Each stage counts its
units of work: every micro-batch in every model chunk, `count` in all. It computes `warm_up` units forward,
then alternates one forward and one backward, then completes what is left backward. The schedules differ in
`warm_up` only: later stages for 1F1B, more if meshes need extra micro-batches, and `(chunks - 1) group` plus
twice the later stages if interleaved. There, a chunk takes `group` micro-batches before the next one does; 0
stands for the engine's default, as many as there are stages.
"""

from __future__ import annotations

from typing import NamedTuple

from flagscale.checks.hetero.layout import HeteroLayout


class Work(NamedTuple):
    """One unit of work of a stage: a micro-batch in one of the stage's model chunks."""

    is_forward: bool
    micro_batch: int
    chunk: int


def order(layout: HeteroLayout, stage: int, micro_batches: int, group: int = 0) -> tuple[Work, ...]:
    """Return all work of a stage in its order."""
    count, warm_up = micro_batches * layout.chunks, warm_ups(layout, group)[stage]
    units = units_of(layout, micro_batches, group)
    found = []
    for turn in range(-warm_up, count):
        if turn + warm_up < count:
            found.append(Work(True, *units[turn + warm_up]))
        if turn >= 0:
            micro_batch, chunk = units[turn]
            found.append(Work(False, micro_batch, layout.chunks - 1 - chunk))
    return tuple(found)


def warm_ups(layout: HeteroLayout, group: int = 0) -> tuple[int, ...]:
    """Return how many units each stage computes forward before it alternates."""
    pp = len(layout.stages)
    if layout.chunks > 1:
        return tuple(2 * (pp - 1 - stage) + (layout.chunks - 1) * (group or pp) for stage in range(pp))
    return layout.warm_ups


def units_of(layout: HeteroLayout, micro_batches: int, group: int) -> list[tuple[int, int]]:
    """Return (micro-batch, chunk) of each unit forward; backward, chunks are counted from the last one."""
    chunks, taken = layout.chunks, group or len(layout.stages)
    if chunks == 1:
        return [(micro_batch, 0) for micro_batch in range(micro_batches)]
    return [
        (micro_batch, chunk)
        for first in range(0, micro_batches, taken)
        for chunk in range(chunks)
        for micro_batch in range(first, min(first + taken, micro_batches))
    ]
