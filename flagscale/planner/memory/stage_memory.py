"""The memory of every rank of a job, as named terms: allocated, reserved by the allocator, on the device.

All ranks of a stage are alike. The peak is found by a walk through the stage's schedule: what all
micro-batches in flight keep, and beside it what the end of a forward pass, the worst moment of a backward
pass, and the end of a backward pass need. docs/planner.md says which terms are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from flagscale.checks.hetero.layout import Stage
from flagscale.frozen import dataclass
from flagscale.planner.memory.live import LiveMemory, chunk_memory, full_recompute
from flagscale.planner.memory.stage_layers import Layers, stage_layers
from flagscale.planner.memory.static import engine_buffers, outside_memory, static_memory
from flagscale.planner.parameters import stage_parameters
from flagscale.planner.schedule import order, warm_ups
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
"""The allocator's reserve beyond the allocated peak, relative to it: 2.8 to 7.9 % in SimuMax's runs."""


class Moment(NamedTuple):
    """The peak of the walk."""

    kept: Mapping[str, float]
    passing: float
    name: str


def memory(training: Training) -> tuple[StageMemory, ...]:
    """Return the memory of all stages, the first one first.

    Raises:
        UserError: the layers are of a kind that the table of kept bytes does not have.
    """
    # The layers of all stages of a mesh are alike.
    of_mesh = {stage.mesh: stage for stage in training.layout.stages}
    layers = {mesh: stage_layers(training, stage) for mesh, stage in of_mesh.items()}
    return tuple(_stage_memory(training, stage, layers[stage.mesh]) for stage in training.layout.stages)


def _stage_memory(training: Training, stage: Stage, layers: Layers) -> StageMemory:
    parameters = stage_parameters(training, stage)
    peak = _peak(training, stage, layers)
    static = [
        *static_memory(training, stage, parameters),
        *engine_buffers(training, stage, parameters, layers.sharding),
    ]
    terms = [Term(name, nbytes, STATIC) for name, nbytes in static]
    terms += (Term(name, nbytes, LIVE) for name, nbytes in peak.kept.items())
    terms.append(Term(peak.name, peak.passing, TRANSIENT))
    terms.append(Term("fragmentation", RESERVE * sum(term.nbytes for term in terms), ALLOCATOR))
    outside = outside_memory(training, stage, layers.sharding)
    terms += (Term(name, nbytes, OUTSIDE) for name, nbytes in outside)
    return StageMemory(stage.index, tuple(term for term in terms if term.nbytes))


def _peak(training: Training, stage: Stage, layers: Layers) -> Moment:
    """Return the worst moment of a step."""
    made: dict[object, LiveMemory] = {}
    alive: dict[tuple[int, int], LiveMemory] = {}
    total, most = 0.0, -1.0
    best: tuple[tuple[LiveMemory, ...], float, str] = ((), 0.0, "nothing")
    for work in order(training.layout, stage.index, _micro_batches(training, stage), training.group):
        key = (work.micro_batch, work.chunk)
        if work.is_forward:
            full = full_recompute(training, stage, work.chunk, work.micro_batch)
            if (work.chunk, full) not in made:
                made[work.chunk, full] = chunk_memory(training, stage, layers, work.chunk, full)
            one = alive[key] = made[work.chunk, full]
            total += one.nbytes
            passing, name = one.forward, "end of the forward pass"
        else:
            one = alive[key]
            passing, name = one.backward, "backward pass"
        if total + passing > most:
            most, best = total + passing, (tuple(alive.values()), passing, name)
        if not work.is_forward:
            del alive[key]
            total -= one.nbytes
            if total + one.after > most:
                most, best = total + one.after, (tuple(alive.values()), one.after, "embedding's gradients")
    chunks, passing, name = best
    kept: dict[str, float] = {}
    for one in chunks:
        for part, nbytes in one.kept.items():
            kept[part] = kept.get(part, 0.0) + nbytes
    return Moment(kept, passing, name)


def _micro_batches(training: Training, stage: Stage) -> int:
    """Return how many micro-batches the walk needs: equal ones repeat once the pipeline is full."""
    if training.recompute.schedule is not None:
        return training.micro_batches
    chunks, warm_up = training.layout.chunks, warm_ups(training.layout, training.group)[stage.index]
    group = max(len(training.layout.stages), training.group) if chunks > 1 else 1
    return min(training.micro_batches, (warm_up // (chunks * group) + 2) * group)
