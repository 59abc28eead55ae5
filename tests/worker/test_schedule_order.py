"""The planner's order of work against the functions of the engine's own schedules."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from megatron.core.pipeline_parallel import schedules

from flagscale.checks.hetero.layout import HeteroLayout, Mesh
from flagscale.planner.schedule import order, warm_ups


@pytest.mark.parametrize(
    ("pp", "chunks", "micro_batches", "group"),
    [(2, 1, 5, 0), (4, 1, 2, 0), (2, 2, 2, 0), (4, 3, 4, 4), (4, 2, 16, 0), (8, 4, 32, 0), (4, 3, 14, 5)],
)
def test_the_order_is_the_engines(pp: int, chunks: int, micro_batches: int, group: int) -> None:
    layout = HeteroLayout((Mesh(pp=pp, layers=((1,) * chunks,) * pp),))
    table = schedules.get_schedule_table(micro_batches, chunks, group or pp)
    for stage in range(pp):
        ranks = SimpleNamespace(size=lambda: pp, rank=lambda stage=stage: stage)
        communicator = SimpleNamespace(
            pp_group=ranks, virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None
        )
        total, _, warm_up, _ = schedules.get_pp_rank_microbatches(
            micro_batches, chunks, group or pp, p2p_communicator=communicator
        )
        assert min(warm_ups(layout, group)[stage], total) == warm_up
        works = order(layout, stage, micro_batches, group)
        assert [(work.micro_batch, work.chunk) for work in works if work.is_forward] == table
        backward = [(micro_batch, chunks - 1 - chunk) for micro_batch, chunk in table]
        assert [(work.micro_batch, work.chunk) for work in works if not work.is_forward] == backward
        first_backward = next(number for number, work in enumerate(works) if not work.is_forward)
        assert first_backward == warm_up + (warm_up < total)
