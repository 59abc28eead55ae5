"""The memory of every rank of a job, as named terms: allocated, reserved by the allocator, on the device.

All ranks of a stage are alike. The peak is found by a walk through the stage's schedule: what all
micro-batches in flight keep, and beside it what the end of a forward pass, the worst moment of a backward
pass, and the end of a backward pass need. docs/planner.md says which terms are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from flagscale.checks.hetero.layout import Stage
from flagscale.frozen import dataclass
from flagscale.planner.live_memory import Chunk, chunk_memory, full_recompute, layer_setting
from flagscale.planner.parameters import stage_parameters
from flagscale.planner.schedule import order, warm_ups
from flagscale.planner.static_memory import engine_buffers, static_memory
from flagscale.planner.training import Training

STATIC, LIVE, TRANSIENT, ALLOCATOR, OUTSIDE = "static", "live", "transient", "allocator", "outside"


@dataclass(frozen=True)
class Term:
    """One part of the memory of a rank."""

    name: str
    nbytes: float
    kind: str
    """static: throughout a step; live: kept for backward passes; transient: at the worst moment; allocator:
    reserved, but not allocated; outside: by the driver and the communication library."""


@dataclass(frozen=True)
class StageMemory:
    """The memory of each rank of one stage at its peak."""

    stage: int
    terms: tuple[Term, ...]

    def of(self, *kinds: str) -> float:
        """Return the bytes of all terms of some kinds."""
        return sum(term.nbytes for term in self.terms if term.kind in kinds)

    @property
    def allocated(self) -> float:
        """Bytes of tensors at the peak (`torch.cuda.max_memory_allocated`)."""
        return self.of(STATIC, LIVE, TRANSIENT)

    @property
    def reserved(self) -> float:
        """Bytes that the allocator has taken from the device (`torch.cuda.max_memory_reserved`)."""
        return self.allocated + self.of(ALLOCATOR)

    @property
    def device(self) -> float:
        """Bytes in use on the device, as its tools show them."""
        return self.reserved + self.of(OUTSIDE)


RESERVE = 0.05
CONTEXT = 2**30


class Moment(NamedTuple):
    """The peak of the walk."""

    kept: Mapping[str, float]
    passing: float
    name: str


def memory(training: Training) -> tuple[StageMemory, ...]:
    """Return the memory of all stages, the first one first."""
    return tuple(stage_memory(training, stage) for stage in training.layout.stages)


def stage_memory(training: Training, stage: Stage) -> StageMemory:
    """Return the memory of each rank of a stage.

    Raises:
        UserError: the layers are of a kind that the table of kept bytes does not have.
    """
    parameters, setting = stage_parameters(training, stage), layer_setting(training, stage)
    terms = [Term(name, nbytes, STATIC) for name, nbytes in static_memory(training, stage, parameters)]
    terms += (
        Term(name, nbytes, STATIC) for name, nbytes in engine_buffers(training, stage, parameters, setting)
    )
    peak = _peak(training, stage)
    terms += (Term(name, nbytes, LIVE) for name, nbytes in peak.kept.items())
    terms.append(Term(peak.name, peak.passing, TRANSIENT))
    allocated = sum(term.nbytes for term in terms)
    terms.append(Term("fragmentation", RESERVE * allocated, ALLOCATOR))
    terms.append(Term("context and communicators", CONTEXT, OUTSIDE))
    return StageMemory(stage.index, tuple(term for term in terms if term.nbytes))


def _peak(training: Training, stage: Stage) -> Moment:
    """Return the worst moment of a step."""
    made: dict[object, Chunk] = {}
    alive: dict[tuple[int, int], Chunk] = {}
    total, most = 0.0, -1.0
    best = Moment({}, 0.0, "nothing")
    for work in order(training.layout, stage.index, _micro_batches(training), training.group):
        key = (work.micro_batch, work.chunk)
        if work.is_forward:
            full = full_recompute(training, stage, work.chunk, work.micro_batch)
            if (work.chunk, full) not in made:
                made[work.chunk, full] = chunk_memory(training, stage, work.chunk, full)
            one = alive[key] = made[work.chunk, full]
            total += one.nbytes
            moments = [(total + one.forward, one.forward, "end of the forward pass")]
        else:
            one = alive[key]
            moments = [(total + one.backward, one.backward, "backward pass")]
        for nbytes, passing, name in moments:
            if nbytes > most:
                most, best = nbytes, Moment(_joined(alive.values()), passing, name)
        if not work.is_forward:
            del alive[key]
            total -= one.nbytes
            if total + one.after > most:
                most = total + one.after
                best = Moment(_joined(alive.values()), one.after, "gradients of the embedding")
    return best


def _joined(chunks: Iterable[Chunk]) -> Mapping[str, float]:
    found: dict[str, float] = {}
    for chunk in chunks:
        for name, nbytes in chunk.kept.items():
            found[name] = found.get(name, 0.0) + nbytes
    return found


def _micro_batches(training: Training) -> int:
    """Return how many micro-batches the walk needs: equal ones repeat once the pipeline is full."""
    if training.recompute.schedule is not None:
        return training.micro_batches
    group = max(len(training.layout.stages), training.group)
    needed = max(warm_ups(training.layout, training.group)) // training.layout.chunks + 1
    return min(training.micro_batches, (needed // group + 2) * group)
