"""The best plans of a training on a cluster: which chips take part, and how the model is divided over them.

A quick search (`mesh_search.py`) finds the most promising pipelines; the models of whole trainings then rate
these again. docs/planner.md says what is searched, and what it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import permutations
from math import gcd
from typing import TYPE_CHECKING, Any

from flagscale.checks.context import context_violations
from flagscale.checks.degrees import violations
from flagscale.checks.experts import expert_violations
from flagscale.checks.hetero.keys import EXTRA
from flagscale.checks.hetero.layout import HeteroLayout, Mesh
from flagscale.checks.hetero.rules import mesh_values, mesh_violations
from flagscale.checks.schedule import batch_sizes
from flagscale.errors import Problem, UserError, Violation
from flagscale.frozen import dataclass, replace
from flagscale.planner.calibration import Calibration
from flagscale.planner.intervals import interval
from flagscale.planner.memory.stage_memory import OUTSIDE, StageMemory, memory
from flagscale.planner.search.cluster import Cluster
from flagscale.planner.search.estimated_costs import EstimatedCosts
from flagscale.planner.search.mesh_costs import MeshDegrees
from flagscale.planner.search.mesh_options import MOST_TOKENS, Mode, legal_degrees, modes, rule_values
from flagscale.planner.search.report import considered, shortage
from flagscale.planner.search.space import Counts, Space
from flagscale.planner.search.trainings import (
    Rated,
    chip_of_stage,
    searched_arguments,
    searched_training,
    with_searched,
)
from flagscale.planner.time.constants import Constants
from flagscale.planner.time.step_time import DEFAULT, step_time
from flagscale.planner.training import Training

if TYPE_CHECKING:  # it imports numpy
    from flagscale.planner.search.layer_split import Split

STAGES = 64
"""The most stages that are tried."""
_DOUBTFUL, _POLISHED, _MOVES = 0.03, 3, 8
"""The doubt about a quick rating from which layers are moved; in how many plans; the most moves at a time."""
_MARGINS = (1.0, 1.03, 1.08, 1.15)
"""Factors of memory that are tried if none of the best plans fits by the whole model of memory."""


@dataclass(frozen=True)
class Found:
    """The answer of a search."""

    plans: tuple[Rated, ...]
    """The fastest first; at least one."""
    counts: Counts
    estimated: int
    """Plans that were rated with the models of whole trainings."""
    considered: tuple[str, ...]
    """Sentences on what was searched, left out and chosen."""

    @property
    def best(self) -> Rated:
        return self.plans[0]


def best_plans(
    template: Training,
    cluster: Cluster,
    values: Mapping[str, Any] | None = None,
    *,
    keep: int = 4,
    constants: Constants = DEFAULT,
    calibration: Calibration | None = None,
    surely: bool = False,
) -> Found:
    """Return the best plans of a training on a cluster.

    Args:
        template: the model, its batch and its precisions; layout, micro-batch and recomputation are searched.
        cluster: the devices.
        values: the user's arguments (by dest, defaults included) for the rules; those that are searched do
            not count. Without them, the rules are checked as far as the template goes.
        keep: the most plans to return.
        constants: of the time model.
        calibration: of the machine, if there is one.
        surely: whether plans must fit with the upper end of their own intervals, not with their estimates.

    Raises:
        UserError: the cluster is empty; nothing fits; no plan is legal.
    """
    found: list[Found] = []
    problems: list[Problem] = []
    notes: list[str] = []
    for one, note in cluster.linked():
        try:
            found.append(_best_of_linked(template, one, values, keep, constants, calibration, surely))
        except UserError as error:
            problems += (
                replace(problem, hint="\n    ".join(filter(None, (problem.hint, note))))
                for problem in error.problems
            )
            names = ", ".join(pool.type or pool.chip.name for pool in one.pools)
            notes += [note, f"There is no plan for {names} alone: {error.problems[0].what}."]
        else:
            notes.append(note)
    if not found:
        raise UserError(dict.fromkeys(problems))
    found.sort(key=lambda one: one.best.seconds)
    plans = sorted((plan for one in found for plan in one.plans), key=lambda plan: plan.seconds)
    sentences = [sentence for one in found for sentence in one.considered]
    counts, estimated = found[0].counts, sum(one.estimated for one in found)
    return Found(tuple(plans[:keep]), counts, estimated, (*sentences, *filter(None, notes)))


def _best_of_linked(
    template: Training,
    cluster: Cluster,
    values: Mapping[str, Any] | None,
    keep: int,
    constants: Constants,
    calibration: Calibration | None,
    surely: bool,
) -> Found:
    """Return the best plans on a cluster whose links are known; see `best_plans`."""
    from flagscale.planner.search.mesh_search import search

    of = calibration or Calibration()

    def factor(training: Training) -> float:
        """Return how many times its estimate a rank may reserve."""
        return interval(training, "reserved", calibration is not None)[1] if surely else 1.0

    memory_factor = factor(template)
    space = searched_space(template, cluster, values, constants, of, memory_factor)
    given = rule_values(template, values)

    def whole(mode: Mode, split: Split) -> Rated | None:
        """Return a plan with its whole estimate; None if it does not fit or a rule refuses it."""
        training = searched_training(template, cluster, mode, split, given)
        arguments = searched_arguments(training, mode.expert_tp is None)
        if given["global_batch_size"] is None:  # a schedule has all sizes
            del arguments["global_batch_size"]
        stages = memory(training)
        if broken := broken_rules(training, arguments, given):
            refused.append(broken[0])
            return None
        if not _fits(training, stages, of, factor(training)):
            large.append(stages)
            return None
        return Rated(training, arguments, step_time(training, constants, of), stages, mode, split)

    rated: list[Rated] = []
    refused: list[Violation] = []
    large: list[object] = []
    for margin in _MARGINS:
        costs = EstimatedCosts(template, cluster, constants, of, memory_factor * margin)
        best, counts = search(replace(space, costs=costs))
        is_short = False
        for mode, split in best.ranked():
            fastest = min((one.split.seconds for one in rated), default=split.seconds)
            if len(rated) >= keep and split.seconds > (1 + _doubt(split)) * fastest:
                break
            if one := whole(mode, split):
                rated.append(one)
            else:
                is_short = True
        # Plans of another class than the template's have wider intervals: recomputation may make them fit.
        if not best.found or (rated and (margin > 1 or not is_short or not surely)):
            break
    if not rated and refused and not large:
        where, why = refused[0]
        raise UserError([Problem("none of the best layouts keeps the rules of this job", where, why)])
    if not rated:
        raise UserError([shortage(template, space, constants, of, memory_factor)])
    rated += [*_moved(sorted(rated, key=lambda one: one.seconds)[:_POLISHED], whole)]
    distinct = _distinct(sorted(rated, key=lambda one: one.seconds))
    sentences = (*_why_one(template, cluster, given), *considered(cluster, counts, len(rated), distinct))
    return Found(tuple(distinct[:keep]), counts, len(rated), sentences)


def _doubt(split: Split) -> float:
    """Return how far the quick rating may be off: it takes the ends of a step as if all stages were equal."""
    pipeline = split.pipeline
    return 0.01 + min(0.2, 0.5 * (pipeline.stages - 1) / pipeline.micro_batches)


def _moved(rated: Sequence[Rated], whole: Callable[[Mode, Split], Rated | None]) -> Iterator[Rated]:
    """Yield better plans by moving layers between stages, if the quick rating may have divided them badly."""
    from flagscale.planner.search.layer_split import rated as quick

    for best in rated:
        if _doubt(best.split) < _DOUBTFUL:
            continue
        for _ in range(_MOVES):
            layers = best.split.layers
            moves = (
                [count + (stage == into) - (stage == out) for stage, count in enumerate(layers)]
                for out, into in permutations(range(len(layers)), 2)
            )
            splits = [split for one in moves if (split := quick(best.split.pipeline, one))]
            splits.sort(key=lambda one: one.seconds)
            tried = [one for split in splits[:_MOVES] if (one := whole(best.mode, split))]
            found = min(tried, key=lambda one: one.seconds, default=best)
            if found.seconds >= best.seconds:
                break
            best = found
            yield best


def searched_space(
    template: Training,
    cluster: Cluster,
    values: Mapping[str, Any] | None = None,
    constants: Constants = DEFAULT,
    calibration: Calibration | None = None,
    memory_factor: float = 1.0,
) -> Space:
    """Return what `best_plans` searches; see there.

    Raises:
        UserError: the cluster is empty or its links are not known; no degrees are legal.
    """
    cluster.check()
    if template.batch < 1:
        raise UserError(f"a step needs a batch of at least 1 sample, not {template.batch}")
    given = rule_values(template, values)
    legal = {
        mode: [legal_degrees(template, given, pool, mode) for pool in cluster.pools]
        for mode in modes(template)
    }
    if not any(degrees for each in legal.values() for degrees in each):
        what = "no parallel degrees keep the rules of this model"
        raise UserError([Problem(what, "", _refused(given))])
    costs = EstimatedCosts(template, cluster, constants, calibration, memory_factor)
    legal = {mode: each for mode, each in legal.items() if _is_known(costs, cluster, each, mode)}
    return Space(
        cluster=cluster,
        costs=costs,
        layers=template.model.layers,
        batch=template.batch,
        legal=legal,
        meshes=1 if [*_why_one(template, cluster, given)] else len(cluster.pools),
        most_micro_batch=MOST_TOKENS / template.sequence,
        stages=STAGES,
        common=gcd(template.batch, *_batches(given)),
    )


def _batches(values: Mapping[str, Any]) -> Iterator[int]:
    """Yield the sizes of a batch that grows."""
    if written := values.get("step_batch_size_schedule"):
        yield from (batch for _, batch in batch_sizes(str(written), int(values["seq_length"])))


def _is_known(
    costs: EstimatedCosts, cluster: Cluster, legal: Sequence[Sequence[MeshDegrees]], mode: Mode
) -> bool:
    """Return whether the model of memory knows what layers keep if the modules of a mode are recomputed."""
    for pool, found in zip(cluster.pools, legal, strict=True):
        if mode.modules and found:
            costs.layer(pool, found[0], (), 1)  # raises what is wrong without the modules, too
            try:
                costs.layer(pool, found[0], mode.modules, 1)
            except UserError:
                return False
    return True


def broken_rules(
    training: Training, arguments: Mapping[str, Any], values: Mapping[str, Any]
) -> list[Violation]:
    """Return the rules of layouts that a plan breaks: there must be none."""
    layout = training.layout
    found = with_searched(values, arguments)
    if len(layout.meshes) > 1:
        of_meshes = [mesh_values(layout, found, number) for number in range(len(layout.meshes))]
        broken = [*mesh_violations(layout, found, layout.world_size)]
    else:
        of_meshes, broken = [found], [*violations(found, layout.world_size)]
    for one in of_meshes:
        broken += [*context_violations(one), *expert_violations(one)]
    return broken


def _why_one(template: Training, cluster: Cluster, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield why a pipeline may have one mesh only, if that is so."""
    layers = template.model.layers
    if len(cluster.pools) > 1 and layers > 1:
        both = HeteroLayout((Mesh(layers=((1,),)), Mesh(layers=((layers - 1,),))))
        if refused := [*mesh_violations(both, values, 2)]:
            yield f"Only one type is used at a time: {refused[0][1]}."


def _distinct(rated: Sequence[Rated]) -> list[Rated]:
    """Return the plans without those that differ from a faster one in the extra micro-batches only."""
    found: list[Rated] = []
    for one in rated:
        of = {**one.arguments, EXTRA: None}
        if all({**other.arguments, EXTRA: None} != of for other in found):
            found.append(one)
    return found


def _fits(training: Training, stages: Sequence[StageMemory], calibration: Calibration, factor: float) -> bool:
    return all(
        calibration.nbytes(factor * stage.reserved + stage.of(OUTSIDE))
        <= chip_of_stage(training, stage.stage).memory_bytes
        for stage in stages
    )


def _refused(values: Mapping[str, Any]) -> str:
    """Return the rule that even one rank breaks."""
    one = {**values, "global_batch_size": 1, "step_batch_size_schedule": None}
    found = [*violations(one, 1), *expert_violations(values)]
    return found[0][1] if found else "use other degrees for the experts or a host with more devices"
