"""The training that an estimate is about: a checked job's arguments, and the chips of its hosts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from flagscale import registry
from flagscale.checks.lora import RANK, trains_adapters
from flagscale.checks.pictures import has_pictures
from flagscale.checks.vocabulary import vocabulary_of
from flagscale.config.schema import Experiment
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem, UserError
from flagscale.planner.chips import Chip
from flagscale.planner.reading import layout_of, training_of
from flagscale.planner.training import Training
from flagscale.values import Host, Job

OF_ADAPTERS = (
    f"trainings of adapters (`{RANK}`) are not estimated: frozen weights are not modelled",
    f"an estimate without `{RANK}` is of a training of all weights, which needs more memory",
)
"""Why a training of adapters is not estimated, and what is instead."""


def training_for(job: Job, experiment: Experiment, chips: Sequence[Chip], source_map: SourceMap) -> Training:
    """Return the training; `chips`: one per host. With a job per host, that of the first host.

    Raises:
        UserError: the job is no training, or the planner does not know its model.
    """
    _refuse_unknown(job, source_map)
    hosts = job.hosts[:1] if job.own_roles else job.hosts
    by_rank = [(host, chip) for host, chip in zip(hosts, chips, strict=False) for _ in range(host.slots)]
    layout = layout_of(job.arguments, len(by_rank))
    of_meshes = [[by_rank[rank] for rank in layout.ranks(mesh)] for mesh in range(len(layout.meshes))]
    where = source_map.where(f"{job.task_type}.hetero_process_meshes")
    if problems := [
        _mixed(number, [chip for _, chip in members], where)
        for number, members in enumerate(of_meshes)
        if len({chip.name for _, chip in members}) > 1
    ]:
        raise UserError(problems)
    return training_of(
        job.arguments,
        len(by_rank),
        [members[0][1] for members in of_meshes],
        [_neighbours([host for host, _ in members]) for members in of_meshes],
        vocabulary_of(job.arguments),
    )


@contextmanager
def refusing(refused: str, experiment: Experiment, source_map: SourceMap) -> Iterator[None]:
    """Name what the planner refuses (`cannot estimate`), and where the arguments to blame are written."""
    group = experiment.task.type
    paths = dict(_leaves(experiment.arguments, group))

    def place(where: str) -> str:
        if not where.isidentifier():  # empty, or a place already
            return where
        return source_map.where(paths.get(where, f"{group}.{where}"))

    try:
        yield
    except UserError as error:
        problems = [Problem(one.what, place(one.where), one.hint) for one in error.problems]
        raise UserError(problems, refused) from None


def _leaves(tree: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Yield names and key paths of the arguments in a task group."""
    for name, value in tree.items():
        yield name, f"{path}.{name}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}.{name}")


def _neighbours(hosts: Sequence[Host]) -> int:
    """Return how many ranks share a host: the fewest of all hosts."""
    return min(host.slots for host in hosts)


def _refuse_unknown(job: Job, source_map: SourceMap) -> None:
    refuse_other_engines(job.engine, source_map)
    if not job.arguments or job.has_own_model or trains_adapters(job.arguments):
        what, hint = _why_unknown(job)
        raise UserError([Problem(what, source_map.where("experiment.task.entrypoint"), hint)])


def _why_unknown(job: Job) -> tuple[str, str]:
    """Return why a job is not estimated, and what is instead."""
    if has_pictures(job.arguments):
        what = "trainings with pictures are not estimated: a vision tower and its tiles are not modelled"
        return what, "to estimate a language model alone, use a task file of its own, for train_gpt"
    if trains_adapters(job.arguments):
        return OF_ADAPTERS
    what = f"the model of `{job.role.entrypoint}` is unknown: the program has its own forward step"
    return what, "only programs that train the model of Megatron's arguments are estimated"


def refuse_other_engines(engine: object, source_map: SourceMap) -> None:
    """Raise UserError if the engine is one that the planner has no model of."""
    if isinstance(engine, str) and engine != "megatron" and registry.is_known("engines", engine):
        what = f"jobs of `{engine}` are not estimated, only trainings with megatron"
        raise UserError([Problem(what, source_map.where("experiment.task.backend"))], "cannot estimate")


def _mixed(number: int, chips: Sequence[Chip], where: str) -> Problem:
    names = ", ".join(dict.fromkeys(chip.name for chip in chips))
    what = f"mesh {number} has chips of several kinds ({names}), and an estimate takes one per mesh"
    return Problem(what, where, "give each kind a mesh of its own (hetero_process_meshes), or one chip=NAME")
