"""How the candidates of a job are estimated: by the planner, or by a rank if chip or model are unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flagscale.checks.vocabulary import vocabulary_of
from flagscale.config.source_map import SourceMap
from flagscale.errors import UserError
from flagscale.estimates.chips import UnknownChip, chip_entries, chips_of
from flagscale.frozen import replace
from flagscale.plan.prepare import Prepared
from flagscale.planner.chips import Chip, chip_of
from flagscale.planner.estimate import estimate
from flagscale.planner.intervals import interval
from flagscale.planner.propose import Candidate
from flagscale.planner.reading import training_of
from flagscale.planner.rough import rough_cost
from flagscale.planner.space import Changes, Space
from flagscale.planner.training import Training
from flagscale.tuning.figures import Basis

_NOMINAL: Mapping[str, Any] = {
    "bf16_tflops_dense": 0.05,
    "fp16_tflops_dense": 0.05,
    "fp32_tflops_dense": 0.05,
    "hbm_gb_s": 10,
    "memory_gb": 0,
    "intra_node": {"gb_s": 4, "world": 1 << 20},
    "inter_node": {"gbit_s_per_card": 10},
}
"""A processor core of no particular machine: what it computes only ranks, until trials have calibrated it."""


def basis_of(
    prepared: Prepared, space: Space, changes: Changes, chip: str, source_map: SourceMap
) -> Basis:
    """Return how candidates are estimated.

    Args:
        prepared: the job as configured.
        space: the space, with the arguments that candidates change.
        changes: of one candidate, to see whether the planner knows the model.
        chip: the command's `chip=`; "": as the hosts say.
        source_map: the places to blame.

    Raises:
        UserError: `experiment.chips` has mistakes.
    """
    experiment, job = prepared.experiment, prepared.job
    given = (experiment.auto_tuner.memory_model.gpu_memory or 0.0) * 2**20
    if job.has_own_model:
        why = f"`{job.role.entrypoint}` may have a model of its own"
        return _rough(space, given, why)
    entries = chip_entries(experiment)
    notice, is_known = "", True
    try:
        found = _weakest(chips_of(experiment, job.hosts, entries, chip, source_map))
    except UnknownChip as error:
        if chip:
            raise
        found, is_known = chip_of("nominal", _NOMINAL), False
        notice = (
            f"no estimates before trials: {error.problems[0].what}; candidates are ranked as on a nominal chip"
        )
    tokens = vocabulary_of(job.arguments)
    per_host = min(host.slots for host in job.hosts)

    def training(one: Changes) -> Training:
        return training_of({**space.values, **one}, space.world_size, (found,), (per_host,), tokens)

    def candidate(one: Changes) -> Candidate:
        return _estimated(one, training(one), is_known=is_known)

    try:
        candidate(changes)
    except UserError as error:
        return _rough(space, given, error.problems[0].what)
    return Basis(candidate, given or found.memory_bytes, has_estimates=True, notice=notice)


def _estimated(changes: Changes, training: Training, *, is_known: bool) -> Candidate:
    """Return the estimate of a candidate.

    Raises:
        UserError: the planner has no model of the job, or figures of the chip are missing.
    """
    found = estimate(training)
    if found.speed is None:
        raise UserError(found.missing)
    fullest = found.fullest.memory if is_known else max(found.stages, key=lambda one: one.memory.device).memory
    _, most = interval(training, "device", True)
    return Candidate(
        changes,
        found.speed.step.seconds,
        fullest.device,
        reported_bytes=found.stages[-1].memory.allocated,
        time_factors=interval(training, "time", True) if is_known else (1.0, 1.0),
        memory_factor=most,
    )


def _rough(space: Space, capacity: float, why: str) -> Basis:
    """Return the basis without a model: candidates are only ranked."""
    batch = int(space.values["global_batch_size"])

    def candidate(changes: Changes) -> Candidate:
        return Candidate(changes, rough_cost({**space.values, **changes}, space.world_size, batch))

    notice = f"no estimates: {why}; candidates are ranked by the work of a rank and the bubble of the pipeline"
    return Basis(candidate, capacity, has_estimates=False, notice=notice)


def _weakest(chips: Sequence[Chip]) -> Chip:
    """Return a chip with the lowest figures of all: without meshes, all ranks wait for the slowest."""
    first = chips[0]
    if all(chip == first for chip in chips):
        return first
    rates = {name: min(chip.flop_s.get(name, 0.0) for chip in chips) for name in first.flop_s}
    return replace(
        first,
        name=" and ".join(dict.fromkeys(chip.name for chip in chips)),
        flop_s={name: rate for name, rate in rates.items() if rate},
        memory_bytes=min(chip.memory_bytes for chip in chips),
        hbm_bytes_s=min(chip.hbm_bytes_s for chip in chips),
        inside=min((chip.inside for chip in chips), key=lambda link: link.bytes_s),
        outside=min((chip.outside for chip in chips), key=lambda link: link.bytes_s),
        per_node=min(chip.per_node for chip in chips),
    )


