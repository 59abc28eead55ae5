"""Describe the engine to FlagScale: its task type, its keys, and the processes to run on each host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagscale.config.catalog import catalog_of, describe_actions
from flagscale.config.engine_args import EngineArguments, flatten, render
from flagscale.config.schema import Experiment, Task
from flagscale.config.source_map import SourceMap
from flagscale.engines.base import Engine
from flagscale.errors import Problem, UserError
from flagscale.values import Host, Job, Role, Service
from toy_evaluator.score import parser

VERSION = "1.2"


def read(
    group: str, keys: Mapping[str, Any], source_map: SourceMap, problems: list[Problem]
) -> EngineArguments:
    """Return the program's arguments, checked against its own parser."""
    arguments = describe_actions(parser()._actions)
    catalog = catalog_of({"engine": "toy_evaluator", "version": VERSION, "arguments": arguments})
    flat_keys = flatten(group, keys, lambda name: False, source_map, problems)
    if not any(flat_key.name == "answers" for flat_key in flat_keys):
        problems.append(Problem("the key `answers` is required", source_map.where(group)))
    return render(flat_keys, catalog, source_map, problems)


def check(task: Task, arguments: Mapping[str, Any], source_map: SourceMap) -> list[Problem]:
    problems: list[Problem] = []
    read(task.type, arguments, source_map, problems)
    return problems


def build(experiment: Experiment, hosts: tuple[Host, ...], source_map: SourceMap) -> Job:
    problems: list[Problem] = []
    arguments = read(experiment.task.type, experiment.arguments, source_map, problems)
    if problems:
        raise UserError(problems)
    service = Service(name="score", argv=arguments.argv)
    return Job(
        name=experiment.name,
        task_type=experiment.task.type,
        engine="toy_evaluator",
        engine_version=VERSION,
        role=Role(name="score", entrypoint=experiment.task.entrypoint or "toy_evaluator.score", argv=()),
        hosts=hosts,
        layout=f"{arguments.values['metric']} of {arguments.values['answers']}",
        services={host.rank: (service,) for host in hosts},
    )


ENGINE = Engine(
    name="toy_evaluator",
    task_types=("evaluate",),
    distributions=("toy-evaluator",),
    build=build,
    check=check,
)
