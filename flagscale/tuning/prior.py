"""Expectations of the candidates of a job: estimates, or only an order if chip or model are unknown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from flagscale.checks.pictures import has_pictures
from flagscale.checks.vocabulary import vocabulary_of
from flagscale.config.source_map import SourceMap
from flagscale.errors import UserError
from flagscale.estimates.chips import ChipUnknown, chip_entries, chips_of
from flagscale.formats import count
from flagscale.frozen import replace
from flagscale.plan.prepare import Prepared
from flagscale.planner.chips import Chip, chip_of
from flagscale.planner.estimate import estimate
from flagscale.planner.intervals import interval
from flagscale.planner.reading import training_of
from flagscale.planner.training import Training
from flagscale.planner.tuning.heuristic import heuristic_cost
from flagscale.planner.tuning.propose import Candidate
from flagscale.planner.tuning.residuals import deviation
from flagscale.planner.tuning.space import Changes, Space
from flagscale.tuning.figures import Prior, features_of

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


def prior_of(
    prepared: Prepared, space: Space, found: Sequence[Changes], chip: str, source_map: SourceMap
) -> Prior:
    """Return the candidates with what is expected of them.

    Args:
        prepared: the job as configured.
        space: the space, with the arguments that candidates change.
        found: the candidates.
        chip: the command's `chip=`; "": as the hosts say.
        source_map: the places to blame.

    Raises:
        UserError: `experiment.chips` has mistakes, or the command's chip is unknown.
    """
    experiment, job = prepared.experiment, prepared.job
    given = (experiment.auto_tuner.memory_model.gpu_memory or 0.0) * 2**20
    if job.has_own_model:
        if chip:  # of no use here, but a misspelt name is a mistake
            chips_of(experiment, job.hosts, chip_entries(experiment), chip, source_map)
        why = f"`{job.role.entrypoint}` may have a model of its own"
        if has_pictures(job.arguments):
            why = "trainings with pictures are not estimated"
        return _ranked(space, found, given, why)
    notices, is_known = [], True
    try:
        one = _weakest(chips_of(experiment, job.hosts, chip_entries(experiment), chip, source_map))
    except ChipUnknown as error:
        if chip:
            raise
        one, is_known = chip_of("nominal", _NOMINAL), False
        why = error.problems[0].what
        notices.append(f"no estimates before the first trial: {why}; a nominal chip ranks the candidates")
    tokens, per_host = vocabulary_of(job.arguments), min(host.slots for host in job.hosts)

    def training(changes: Changes) -> Training:
        return training_of({**space.values, **changes}, space.world_size, (one,), (per_host,), tokens)

    candidates, problems = _estimated(space, found, training)
    if not candidates:
        return _ranked(space, found, given, next(iter(problems)))
    if problems:
        missing = count(len(found) - len(candidates), "candidate")
        what = f"{missing} of {len(found)} cannot be estimated, only ranked"
        notices.append(f"{what}: {'; '.join(problems)}")
        candidates = _with_ranked(space, found, candidates)
    if not is_known:
        return Prior(tuple(candidates), given, is_nominal=True, notices=tuple(notices))
    typical = training(candidates[0].changes)
    low, _ = interval(typical, "time", is_calibrated=True)
    return Prior(
        tuple(candidates),
        given or one.memory_bytes,
        error=deviation(low),
        factors=interval(typical, "time", is_calibrated=False),
        notices=tuple(notices),
    )


def _estimated(
    space: Space, found: Sequence[Changes], training: Callable[[Changes], Training]
) -> tuple[list[Candidate], dict[str, None]]:
    """Return the candidates that the planner can estimate, and what it does not know about the others."""
    candidates: list[Candidate] = []
    problems: dict[str, None] = {}
    for changes in found:
        try:
            job = training(changes)
            result = estimate(job)
        except UserError as error:
            problems[error.problems[0].what] = None
            continue
        if result.speed is None:
            problems[result.missing[0].what] = None
            continue
        fullest = max(result.stages, key=lambda one: one.memory.device)
        one = Candidate(
            changes,
            result.speed.step.seconds,
            fullest.memory.device,
            reported_bytes=result.stages[-1].memory.allocated,
            features=features_of(changes, space, is_estimated=True),
            memory_factor=interval(job, "device", True)[1],
        )
        candidates.append(one)
    return candidates, problems


def _with_ranked(space: Space, found: Sequence[Changes], candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return all candidates, with a time by their rank for those without an estimate."""
    known = {id(one.changes): one for one in candidates}
    unit = median(one.seconds / _rank(space, one.changes) for one in candidates)
    return [known.get(id(changes)) or _only_ranked(space, changes, unit) for changes in found]


def _only_ranked(space: Space, changes: Changes, unit: float = 1.0) -> Candidate:
    features = features_of(changes, space, is_estimated=False)
    return Candidate(changes, unit * _rank(space, changes), features=features)


def _ranked(space: Space, found: Sequence[Changes], capacity: float, why: str) -> Prior:
    """Return the prior without a model: candidates are only ranked."""
    notice = f"no estimates: {why}; candidates are ranked by the work of a rank and the pipeline's bubble"
    candidates = tuple(_only_ranked(space, changes) for changes in found)
    return Prior(candidates, capacity, is_nominal=True, notices=(notice,))


def _rank(space: Space, changes: Changes) -> float:
    values = {**space.values, **changes}
    return heuristic_cost(values, space.world_size, int(values["global_batch_size"]))


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
