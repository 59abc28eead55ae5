"""The pipeline's schedules against a plain simulation of events, and against what is known in closed form."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from flagscale.checks.hetero.layout import HeteroLayout, Mesh
from flagscale.errors import UserError
from flagscale.planner.schedule import Work, order
from flagscale.planner.time.timeline import Durations, walk


def layout(*stages_of_meshes: int, chunks: int = 1, extra: int = 1) -> HeteroLayout:
    meshes = tuple(Mesh(pp=stages, layers=((1,) * chunks,) * stages) for stages in stages_of_meshes)
    return HeteroLayout(meshes, extra_micro_batches=extra)


def even(pp: int, forward: float, backward: float, chunks: int = 1, transfer: float = 0.0) -> Durations:
    return Durations(((forward,) * chunks,) * pp, (((backward,),) * chunks,) * pp, (transfer,) * pp)


def simulated(one: HeteroLayout, micro_batches: int, durations: Durations, group: int) -> list[float]:
    """Return when each stage ends, by waiting for each message in turn."""
    pp, chunks = len(one.stages), one.chunks
    left = [list(order(one, stage, micro_batches, group)) for stage in range(pp)]
    sent: dict[tuple[Work, int], float] = {}
    free, end = [0.0] * pp, [0.0] * pp
    while any(left):
        before = sum(map(len, left))
        for stage in range(pp):
            while left[stage]:
                work = left[stage][0]
                needs, boundary = _needs(work, stage, pp, chunks)
                if needs is not None and needs not in sent:
                    break
                message = durations.transfer[boundary] if boundary is not None else 0.0
                start = max(free[stage], sent[needs] + message) if needs else free[stage]
                back = durations.backward[stage][work.chunk]
                takes = back[work.micro_batch % len(back)]
                end[stage] = start + (durations.forward[stage][work.chunk] if work.is_forward else takes)
                sent[work, stage] = free[stage] = end[stage]
                if durations.is_blocking and _is_sent(work, stage, pp, chunks):
                    free[stage] += durations.transfer[stage if work.is_forward else stage - 1]
                del left[stage][0]
        assert sum(map(len, left)) < before, "the order never ends"
    return end


def _needs(work: Work, stage: int, pp: int, chunks: int) -> tuple[tuple[Work, int] | None, int | None]:
    """Return the work, and its stage, whose message a work needs, and the boundary that it crosses."""
    if work.is_forward:
        if stage:
            return (work, stage - 1), stage - 1
        return ((work._replace(chunk=work.chunk - 1), pp - 1), pp - 1) if work.chunk else (None, None)
    if stage < pp - 1:
        return (work, stage + 1), stage
    if work.chunk < chunks - 1:
        return (work._replace(chunk=work.chunk + 1), 0), pp - 1
    return (work._replace(is_forward=True), stage), None


def _is_sent(work: Work, stage: int, pp: int, chunks: int) -> bool:
    last = (pp - 1, chunks - 1) if work.is_forward else (0, 0)
    return (stage, work.chunk) != last


def test_the_walk_agrees_with_a_simulation() -> None:
    source = random.Random(18)
    for _ in range(300):
        pp = source.randint(1, 6)
        chunks = source.choice((1, 1, 2, 3)) if pp > 1 else 1
        cuts = sorted({0, pp, *source.sample(range(pp), k=min(pp, 2))})
        meshes = [high - low for low, high in pairwise(cuts)]
        one = layout(*meshes, chunks=chunks, extra=source.randint(0, 3))
        group = pp + source.choice((0, 0, 1, 3))
        count = source.randint(1, 40) * (group if chunks > 1 else 1) + source.choice((0, pp))
        choices = source.choice(((1.0,), (1.0, 1.25), tuple(source.random() + 0.1 for _ in range(30))))
        values = count if source.random() < 0.2 else 1

        def some(
            pp: int = pp, chunks: int = chunks, choices: tuple[float, ...] = choices
        ) -> list[list[float]]:
            return [[source.choice(choices) for _ in range(chunks)] for _ in range(pp)]

        durations = Durations(
            forward=tuple(map(tuple, some())),
            backward=tuple(
                tuple(tuple(2 * source.choice(choices) for _ in range(values)) for _ in of) for of in some()
            ),
            transfer=tuple(source.choice((0.0, 0.125, source.random() / 3)) for _ in range(pp)),
            is_blocking=source.random() < 0.5,
        )
        found = walk(one, count, durations, group)
        assert found.end == pytest.approx(simulated(one, count, durations, group), abs=1e-9 * count)
        # Leaving out whole periods changes no digit.
        assert found.end == tuple(spans[-1].end for spans in found.spans)
        assert [work for _, _, work in found.spans[0]] == list(order(one, 0, count, group))
        assert min(found.idle) >= 0


@pytest.mark.parametrize(("pp", "micro_batches"), [(1, 5), (4, 4), (4, 32), (8, 512)])
def test_the_bubble_of_1f1b(pp: int, micro_batches: int) -> None:
    found = walk(layout(pp), micro_batches, even(pp, 1.0, 2.0))
    assert found.seconds == 3.0 * (micro_batches + pp - 1)
    assert found.busy == (3.0 * micro_batches,) * pp
    assert found.idle == (3.0 * (pp - 1),) * pp


@pytest.mark.parametrize(("pp", "chunks", "micro_batches"), [(4, 2, 8), (4, 4, 16), (8, 3, 64)])
def test_interleaving_divides_the_bubble_by_the_chunks(pp: int, chunks: int, micro_batches: int) -> None:
    found = walk(layout(pp, chunks=chunks), micro_batches, even(pp, 1.0, 2.0, chunks))
    assert found.seconds == 3.0 * (micro_batches * chunks + pp - 1)


def test_messages_delay_1f1b_in_every_round_and_extra_micro_batches_hide_them() -> None:
    durations = even(2, 1.0, 2.0, transfer=0.25)
    plain, hidden = (walk(layout(1, 1, extra=extra), 100, durations).seconds for extra in (0, 1))
    assert plain == pytest.approx(3.25 * 100 + 3, abs=1.0)
    assert hidden == pytest.approx(3.0 * 100 + 3, abs=1.5)
    blocked = walk(layout(2), 100, Durations(*_parts(durations), is_blocking=True)).seconds
    assert blocked >= plain


def _parts(one: Durations) -> tuple[tuple, tuple, tuple]:
    return one.forward, one.backward, one.transfer


def test_the_slowest_stage_sets_the_pace() -> None:
    slow = Durations(((1.0,), (1.5,), (1.0,)), (((2.0,),),) * 3, (0.0,) * 3)
    of = {count: walk(layout(3), count, slow).seconds for count in (100, 101)}
    assert of[101] - of[100] == 3.5


def test_the_order_of_a_stage() -> None:
    text = [
        "".join("BF"[work.is_forward] + str(work.micro_batch) for work in order(layout(3), stage, 4))
        for stage in range(3)
    ]
    assert text == ["F0F1F2B0F3B1B2B3", "F0F1B0F2B1F3B2B3", "F0B0F1B1F2B2F3B3"]
    assert order(layout(2, chunks=2), 1, 2) == (
        Work(True, 0, 0), Work(True, 1, 0), Work(True, 0, 1), Work(False, 0, 1), Work(True, 1, 1),
        Work(False, 1, 1), Work(False, 0, 0), Work(False, 1, 0),
    )  # fmt: skip


def test_an_interleaved_pipeline_needs_whole_groups() -> None:
    with pytest.raises(UserError, match="4 stages cannot divide 6 micro-batches into groups of 4"):
        walk(layout(4, chunks=2), 6, even(4, 1.0, 2.0, 2))
