"""The time that a step takes in the order of the schedule: a walk through the work of all stages.

The walk needs a time proportional to stages times units, 0.05 s for 64 stages and 512 micro-batches. Once all
stages work at one pace, whole periods are left out of the walk, which changes no digit of the result.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from flagscale.checks.hetero.layout import HeteroLayout
from flagscale.errors import Problem, UserError
from flagscale.frozen import dataclass
from flagscale.planner.schedule import Work, units_of, warm_ups

_TICK = 2.0**-40
"""Seconds. Sums of whole ticks are exact in a float, so that equal periods are recognised as equal."""


class Span(NamedTuple):
    """When a stage works at something, in seconds from the start of the step."""

    start: float
    end: float
    work: Work


@dataclass(frozen=True)
class Durations:
    """Seconds of all work in a pipeline."""

    forward: tuple[tuple[float, ...], ...]
    """For each stage and chunk."""
    backward: tuple[tuple[tuple[float, ...], ...], ...]
    """For each stage and chunk: one value for all micro-batches, or one for each."""
    transfer: tuple[float, ...]
    """From each stage to the next (and back), from the last one to the first if interleaved."""
    is_blocking: bool = False
    """Whether the sender waits until its message has arrived."""


@dataclass(frozen=True)
class Timeline:
    """A step of a pipeline, in seconds: everything between the first forward and the last backward pass."""

    layout: HeteroLayout
    micro_batches: int
    durations: Durations
    group: int
    end: tuple[float, ...]
    """When each stage has completed its last work."""
    busy: tuple[float, ...]
    """How long each stage works."""

    @property
    def seconds(self) -> float:
        return max(self.end)

    @property
    def idle(self) -> tuple[float, ...]:
        """How long each stage waits until the last one has completed its work."""
        return tuple(self.seconds - busy for busy in self.busy)

    @cached_property
    def spans(self) -> tuple[tuple[Span, ...], ...]:
        """All work of each stage in its order. Not needed for the other figures."""
        spans: list[list[Span]] = [[] for _ in self.end]
        _ends(self.layout, self.micro_batches, self.durations, self.group, spans)
        return tuple(map(tuple, spans))


def walk(layout: HeteroLayout, micro_batches: int, durations: Durations, group: int = 0) -> Timeline:
    """Return the timeline of a step.

    Raises:
        UserError: the pipeline is interleaved, and the engine cannot divide the micro-batches into groups.
    """
    pp, chunks = len(layout.stages), layout.chunks
    taken = group or pp
    if chunks > 1 and (taken < pp or micro_batches < pp or 0 < micro_batches % taken < pp):
        what = f"an interleaved pipeline of {pp} stages cannot divide {micro_batches} micro-batches"
        raise UserError([Problem(f"{what} into groups of {taken}", hint=f"use a multiple of {pp}")])
    busy = tuple(
        sum(
            micro_batches * _ticks(durations.forward[stage][chunk])
            + sum(map(_ticks, back := durations.backward[stage][chunk])) * (micro_batches // len(back))
            for chunk in range(chunks)
        )
        for stage in range(pp)
    )
    return Timeline(
        layout, micro_batches, durations, group, _ends(layout, micro_batches, durations, group), busy
    )


def _ends(
    layout: HeteroLayout,
    micro_batches: int,
    durations: Durations,
    group: int,
    spans: list[list[Span]] | None = None,
) -> tuple[float, ...]:
    """Return when each stage has completed its work; append all work to `spans`, if given.

    All stages advance in rounds: one unit forward, one backward. A stage is `ahead` of the last one by some
    rounds, so that all that it waits for lies in earlier rounds, or in the same one at later stages.
    """
    stages, chunks = range(len(layout.stages)), layout.chunks
    pp, last = len(stages), len(stages) - 1
    taken = group or pp
    warm_up = warm_ups(layout, group)
    ahead = [last - stage if chunks > 1 else 0 for stage in stages]
    units = units_of(layout, micro_batches, group)
    # Units between those of a micro-batch in one chunk and in the next; the last group may be smaller.
    rest = micro_batches % taken
    whole = (micro_batches - rest) * chunks
    chunk_of = [chunk for _, chunk in units]
    count = len(units)
    forward = [[_ticks(one) for one in of] for of in durations.forward]
    backward = [[[_ticks(one) for one in values] for values in of] for of in durations.backward]
    transfer = [_ticks(one) for one in durations.transfer]
    held = transfer if durations.is_blocking else [0.0] * pp
    free = [0.0] * pp
    # When the output of each unit has reached the stage that needs it.
    arrived = [[0.0] * count for _ in stages]
    returned = [[0.0] * count for _ in stages]
    is_regular = _is_equal(durations) and (chunks == 1 or (taken == pp and not rest))
    periods = _Periods(layout, warm_up, ahead) if is_regular and spans is None else None
    skipped = 0.0
    number = -max(warm - before for warm, before in zip(warm_up, ahead, strict=True))
    while number < count + ahead[0]:
        for stage in reversed(stages):
            turn = number - ahead[stage]
            unit = turn + warm_up[stage]
            if 0 <= unit < count:
                chunk = chunk_of[unit]
                start = free[stage]
                ready = (
                    arrived[stage - 1][unit]
                    if stage
                    else arrived[last][unit - (taken if unit < whole else rest)]
                    if chunk
                    else 0.0
                )
                if ready > start:
                    start = ready
                end = start + forward[stage][chunk]
                if spans is not None:
                    spans[stage].append(Span(start, end, Work(True, units[unit][0], chunk)))
                arrived[stage][unit] = end + transfer[stage]
                free[stage] = end + held[stage] if stage < last or chunk < chunks - 1 else end
            if 0 <= turn < count:
                chunk = chunks - 1 - chunk_of[turn]
                start = free[stage]
                if stage < last:
                    ready = returned[stage + 1][turn]
                else:
                    ready = (
                        returned[0][turn - (taken if turn < whole else rest)] if chunk < chunks - 1 else 0.0
                    )
                if ready > start:
                    start = ready
                values = backward[stage][chunk]
                end = start + values[units[turn][0] % len(values)]
                if spans is not None:
                    spans[stage].append(Span(start, end, Work(False, units[turn][0], chunk)))
                # A gradient goes back over the boundary over which the activation came.
                returned[stage][turn] = end + transfer[stage - 1]
                free[stage] = end + held[stage - 1] if stage or chunk else end
        number += 1
        if periods is not None and (found := periods.after(number, count, free, arrived)):
            rounds, seconds = found
            count -= rounds
            skipped = seconds
            periods = None
    # Nothing is sent after the last unit backward except by later stages.
    return tuple(free[stage] - (held[stage - 1] if stage else 0.0) + skipped for stage in stages)


class _Periods:
    """Recognises that all stages work at one pace: the rounds repeat, later by the same time."""

    def __init__(self, layout: HeteroLayout, warm_up: tuple[int, ...], ahead: list[int]) -> None:
        self.warm_up, self.ahead = warm_up, ahead
        # Rounds after which the chunks repeat.
        self.cycle = len(warm_up) * layout.chunks if layout.chunks > 1 else 1
        # What later rounds depend on: the last messages forward of each stage.
        steps = (one - other for one, other in pairwise(warm_up))
        self.lag = 1 if layout.chunks > 1 else max(steps, default=0)
        self.seen: dict[tuple[float, ...], tuple[int, float]] = {}

    def after(
        self, number: int, count: int, free: list[float], arrived: list[list[float]]
    ) -> tuple[int, float] | None:
        """Return the rounds that can be left out before round `number`, and the seconds that they take."""
        # All stages alternate from here on, until the first one has no unit left to compute forward.
        left = count - max(w - a for w, a in zip(self.warm_up, self.ahead, strict=True)) - number
        if left <= 0 or number < self.ahead[0] + self.lag or number % self.cycle:
            return None
        base = free[0]
        state = [one - base for one in free]
        for stage, messages in enumerate(arrived):
            upto = number - self.ahead[stage] + self.warm_up[stage]
            state += [one - base for one in messages[upto - self.lag : upto]]
        key = tuple(state)
        if key not in self.seen:
            self.seen[key] = number, base
            return None
        earlier, then = self.seen[key]
        period = number - earlier
        times = left // period
        return (times * period, times * (base - then)) if times else None


def _is_equal(durations: Durations) -> bool:
    return all(len(values) == 1 for of in durations.backward for values in of)


def _ticks(seconds: float) -> float:
    return round(seconds / _TICK) * _TICK
