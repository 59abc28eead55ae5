"""The report of a search: what was considered, why the runner-up lost, or what is missing if nothing fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from flagscale.errors import Problem
from flagscale.formats import bytes_text
from flagscale.frozen import replace
from flagscale.planner.calibration import Calibration
from flagscale.planner.memory.stage_memory import memory
from flagscale.planner.search.cluster import Cluster
from flagscale.planner.search.estimated_costs import EstimatedCosts
from flagscale.planner.search.mesh_options import Mode
from flagscale.planner.search.space import Counts, Space
from flagscale.planner.search.trainings import Rated, chip_of_stage, searched_training
from flagscale.planner.time.constants import Constants
from flagscale.planner.training import Training

if TYPE_CHECKING:  # it imports numpy
    from flagscale.planner.search.layer_split import Split

_DOUBLINGS, _NARROW = 12, 1.02
"""How often the memory of all chips is doubled until a plan fits; how close its factor is found."""


def shortage(
    template: Training, space: Space, constants: Constants, calibration: Calibration, memory_factor: float
) -> Problem:
    """Return what is missing: how much more memory the plan needs that fits first if all chips have more."""
    from flagscale.planner.search.mesh_search import search

    def first(factor: float) -> tuple[Mode, Split] | None:
        costs = EstimatedCosts(template, space.cluster, constants, calibration, memory_factor / factor)
        best, _ = search(replace(space, costs=costs), keep=1, exhaustive=0)
        return best.ranked()[0] if best.found else None

    hint = (
        f"use more devices, a smaller model, or a shorter `seq_length`; up to {space.stages} stages are tried"
    )
    high = next((2.0**number for number in range(1, _DOUBLINGS + 1) if first(2.0**number)), None)
    if high is None:
        return Problem("the model does not fit on these devices, whatever their memory is", "", hint)
    low = high / 2
    while high > _NARROW * low:
        middle = (low + high) / 2
        low, high = (low, middle) if first(middle) else (middle, high)
    found = first(high)
    assert found
    training = searched_training(template, space.cluster, *found, {})
    needs = [
        (calibration.nbytes(memory_factor * stage.device), chip_of_stage(training, stage.stage), stage)
        for stage in memory(training)
    ]
    need, chip, stage = max(needs, key=lambda one: one[0] - one[1].memory_bytes)
    term = max(stage.terms, key=lambda one: one.nbytes)
    what = (
        f"the model does not fit on these devices: the plan that comes closest ({training.layout}) is "
        f"short of {bytes_text(need - chip.memory_bytes)} per {chip.name} ({bytes_text(chip.memory_bytes)}) "
        f"in stage {stage.stage}; its largest part is {term.name}, {bytes_text(term.nbytes)}"
    )
    return Problem(what, "", hint)


def considered(cluster: Cluster, counts: Counts, estimated: int, rated: Sequence[Rated]) -> Iterator[str]:
    """Yield what was searched, left out and chosen, in sentences."""
    pools = ", ".join(f"{pool.devices} {pool.type or pool.chip.name}" for pool in cluster.pools)
    order = "1 order" if counts.orders == 1 else f"{counts.orders} orders"
    yield (
        f"On {pools}: {counts.combined:,} combinations of {order} of types, degrees and stages, of which "
        f"{counts.rated:,} were rated with their best layers, and {estimated} with the whole estimate."
    )
    best = rated[0]
    used: dict[str, int] = {}
    for mesh in best.training.layout.meshes:
        used[mesh.type] = used.get(mesh.type, 0) + mesh.ranks
    idle = [
        f"{left} {pool.type or pool.chip.name}"
        for pool in cluster.pools
        if (left := pool.devices - used.get(pool.type, 0))
    ]
    if idle:
        yield f"Idle: {', '.join(idle)}."
    if len(rated) > 1:
        yield _why_lost(best, rated[1])


def _why_lost(best: Rated, other: Rated) -> str:
    """Return a sentence on how a plan differs from the best one, in the stages that limit them."""
    parts = {
        "compute_s": "computing",
        "communication_s": "exposed communication",
        "bubble_s": "waiting for other stages",
        "optimizer_s": "the optimizer",
    }
    differences = {part: getattr(other.time, part) - getattr(best.time, part) for part in parts}
    told = [
        f"{parts[part]} {more:+.3g} s"
        for part, more in sorted(differences.items(), key=lambda one: -one[1])
        if abs(more) >= 0.001 * best.seconds
    ]
    slower = other.seconds / best.seconds - 1
    why = f": {', '.join(told)}" if told else ""
    return f"The runner-up, {other.training.layout}, takes {slower:.1%} longer{why}."
