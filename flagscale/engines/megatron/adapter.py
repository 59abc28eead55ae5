"""Megatron-core with NVIDIA's own trainer (`megatron.training`), started through `megatron.flagscale`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flagscale import platforms, registry
from flagscale.checks.data import data_remarks, inputs_of
from flagscale.checks.degrees import degrees
from flagscale.checks.megatron import remarks
from flagscale.checks.pictures import ENERGON, has_pictures
from flagscale.checks.sft import is_instruction_tuning
from flagscale.checks.tracking import URI
from flagscale.checks.worker import DATASETS, FORWARD_STEP, MODEL_CONFIG, with_defaults
from flagscale.config.catalog import Catalog, load_catalog
from flagscale.config.engine_args import EngineArguments, FlatKey, flatten, render
from flagscale.config.schema import Experiment, Task
from flagscale.config.source_map import SourceMap
from flagscale.config.v060.translate import place_taken, translate_task
from flagscale.engines.base import Engine
from flagscale.engines.megatron import hetero, mlflow, resume
from flagscale.engines.megatron.defaults import defaults_of, folders_in, missing_keys
from flagscale.engines.megatron.hetero import Hetero
from flagscale.engines.megatron.program import TrainingProgram, read_program
from flagscale.engines.megatron.rules import broken_rules, machine_of, with_ranks
from flagscale.engines.megatron.torchrun import torchrun_violations
from flagscale.engines.megatron.wandb import PACKAGE, Login, login_of
from flagscale.errors import Problem, UserError, Violation
from flagscale.run.rundir import RunDir
from flagscale.values import Host, Job, Role

CATALOG = Path(__file__).parents[1] / "catalog" / "megatron.json"
TRAIN = "megatron.flagscale.train_gpt"
SAVE_GRACE = 120.0
"""Seconds that the ranks have after SIGTERM if they save a checkpoint first (exit_signal_handler)."""
STOP_GRACE = 10.0


def given_arguments(experiment: Experiment, names: Collection[str], source_map: SourceMap) -> dict[str, Any]:
    """Return these arguments (by dest) of a training, whatever mistakes its other keys have.

    Raises:
        UserError: one of them cannot be read.
    """
    read = _read(experiment.task, experiment.arguments, defaults_of(experiment), source_map)
    if not read.arguments.is_complete or {*names} & read.arguments.unknown.keys():
        raise UserError(read.problems)
    return {name: read.arguments.values.get(name) for name in names}


@dataclass(frozen=True)
class _Read:
    """The task group as far as it can be read, without hosts."""

    program: TrainingProgram
    catalog: Catalog
    arguments: EngineArguments
    meshes: Hetero
    secrets: Mapping[str, str]
    notices: list[str]
    problems: list[Problem]
    """The mistakes in names and values."""


def build(experiment: Experiment, hosts: tuple[Host, ...], source_map: SourceMap) -> Job:
    """Return the training job; see `engines.base.Engine.build`."""
    group = experiment.task.type
    read = _read(experiment.task, experiment.arguments, defaults_of(experiment), source_map)
    arguments, meshes, catalog = read.arguments, read.meshes, read.catalog
    problems = [*read.problems, *_rule_problems(read, hosts, group, source_map)]
    problems += _missing_chips(experiment, hosts, source_map)
    problems += _common_folders(experiment, arguments, source_map)
    problems += [
        Problem(what, source_map.where(f"experiment.runner.{key}"), hint)
        for key, what, hint in torchrun_violations(experiment.runner, hosts)
    ]
    if problems or arguments.unknown or not arguments.is_complete:
        raise UserError(problems)  # the keys that cannot be read have been reported already
    world_size = sum(host.slots for host in hosts)
    has_own_data = DATASETS in read.program.own_parts
    uses_wandb = bool(arguments.values["wandb_project"])
    uses_mlflow = bool(arguments.values[URI])
    mlflow_login = mlflow.login_of(experiment.envs) if uses_mlflow else {}
    login = login_of(read.secrets, experiment.envs) if uses_wandb else Login()
    remarked = [*_remarks(read, world_size), *([("wandb_project", login.notice)] if login.notice else ())]
    remarked += resume.restart_notices(arguments.values, experiment.runner.max_restarts)
    places = [source_map.where(_path(arguments, dest, group, catalog)) for dest, _ in remarked]
    notices = [f"{place}: {what}" for place, (_, what) in zip(places, remarked, strict=True)]
    saves = arguments.values["exit_signal_handler"] and arguments.values["save"]
    return Job(
        name=experiment.name,
        task_type=group,
        engine="megatron",
        engine_version=catalog.version,
        role=Role(
            name="train",
            entrypoint=read.program.name,
            argv=arguments.argv,
            env=login.env,
            stop_grace=experiment.runner.stop_grace or (SAVE_GRACE if saves else STOP_GRACE),
        ),
        hosts=hosts,
        layout=str(meshes.layout or degrees(arguments.values, world_size)),
        picture=hetero.picture(meshes.layout, arguments.values),
        inputs=inputs_of(with_ranks(arguments.values, hosts), has_own_data=has_own_data),
        packages=(
            *[PACKAGE] * uses_wandb,
            *[mlflow.PACKAGE] * uses_mlflow,
            *[ENERGON] * has_pictures(arguments.values),
        ),
        secrets={**read.secrets, **login.secrets, **mlflow_login},
        arguments=with_defaults(arguments.values, {*arguments.paths}, machine_of(hosts)),
        has_own_model=bool({MODEL_CONFIG, FORWARD_STEP} & read.program.own_parts)
        and not is_instruction_tuning(arguments.values),
        texts=arguments.texts,
        notices=(*read.notices, *notices),
    )


def _remarks(read: _Read, world_size: int) -> Iterator[Violation]:
    """Yield what is allowed, but deserves a notice: changes by the engine, long scans, another run before."""
    values = read.arguments.values
    variants = [
        [*remarks(variant, read.arguments.paths)] for variant in hetero.variants(read.meshes.layout, values)
    ]
    yield from (remark for remark in variants[0] if all(remark in others for others in variants))
    yield from data_remarks(values)
    yield from resume.notices(*hetero.first_mesh(read.meshes.layout, values, world_size))


def _common_folders(
    experiment: Experiment, arguments: EngineArguments, source_map: SourceMap
) -> list[Problem]:
    """Return a problem per folder into which the jobs of all hosts would write (`per_node_task`)."""
    runner, paths = experiment.runner, arguments.paths
    if not runner.per_node_task or runner.no_shared_fs:
        return []
    return [
        Problem(
            f"with `per_node_task`, the jobs of all hosts would write to the same `{dest}`",
            source_map.where(paths[dest]),
            "remove the key, so that each host has its own folder below experiment.exp_dir/hosts, or set "
            "experiment.runner.no_shared_fs: true if this path is on each host's own disk",
        )
        for dest in ("save", "tensorboard_dir", "metrics_file")
        if arguments.values.get(dest) and "." in paths.get(dest, "")
    ]


def _missing_chips(experiment: Experiment, hosts: tuple[Host, ...], source_map: SourceMap) -> list[Problem]:
    """Return a problem per platform whose chip is not installed: every rank would fail."""
    hostfile = experiment.runner.hostfile
    where = f"{hostfile}: type=" if hostfile else source_map.where("experiment.runner.platform")
    kinds = [platforms.find(name) for name in {host.platform for host in hosts}]
    return [
        Problem(
            f"the platform `{name}` cannot train: no package has the entry point `{name}` "
            "in the group `flagscale.chips`",
            where,
            f"install the package that adds the chip `{name}` (the platform is from "
            f"{registry.registered_by('platforms', name)})",
        )
        for name in sorted({kind.name for kind in kinds if not platforms.has_chip(kind)})
    ]


def check(task: Task, arguments: Mapping[str, Any], source_map: SourceMap) -> list[Problem]:
    """Return the mistakes that do not depend on the hosts; see `engines.base.Engine.check`."""
    read = _read(task, arguments, folders_in(RunDir(Path("run"))), source_map)
    return [*read.problems, *_rule_problems(read, None, task.type, source_map)]


def _read(task: Task, tree: Mapping[str, Any], defaults: Mapping[str, Any], source_map: SourceMap) -> _Read:
    problems: list[Problem] = []
    program, catalog = _program(task, source_map, problems)
    flat_keys = _flat(task.type, tree, catalog, source_map, problems)
    flat_keys, secrets, notices = translate_task(flat_keys, source_map, problems)
    flat_keys, meshes = hetero.take(flat_keys, source_map, problems, notices)
    flat_keys = [*missing_keys(defaults, flat_keys), *flat_keys]
    arguments = render(flat_keys, catalog, source_map, problems, may_have_others=program.has_mistake)
    arguments = replace(arguments, paths={**meshes.paths, **arguments.paths})
    return _Read(program, catalog, arguments, meshes, secrets, notices, problems)


def _rule_problems(
    read: _Read, hosts: Sequence[Host] | None, group: str, source_map: SourceMap
) -> list[Problem]:
    return [
        Problem(what, source_map.where(_path(read.arguments, dest, group, read.catalog)))
        for dest, what in broken_rules(read.arguments, hosts, read.meshes, read.program)
    ]


def _program(task: Task, source_map: SourceMap, problems: list[Problem]) -> tuple[TrainingProgram, Catalog]:
    """Return the training program, and every argument that a key can name: the engine's and the program's."""
    catalog = load_catalog(CATALOG)
    where = source_map.where("experiment.task.entrypoint")
    try:
        program = read_program(task.entrypoint or TRAIN, catalog, where)
    except UserError as error:
        problems += error.problems
        program = TrainingProgram(task.entrypoint, has_mistake=True)
    return program, catalog if program.name == TRAIN else program.extend(catalog)


def _flat(
    group: str, arguments: Mapping[str, Any], catalog: Catalog, source_map: SourceMap, problems: list[Problem]
) -> list[FlatKey]:
    return flatten(
        group,
        arguments,
        lambda name: _takes_mapping(catalog, name),
        source_map,
        problems,
        lambda name: place_taken(name, group, arguments),
    )


def _takes_mapping(catalog: Catalog, name: str) -> bool:
    """Return whether a mapping under this name is a value (JSON for the engine) rather than a YAML section.

    `optimizer:` is an argument with choices and also a natural section name: a mapping below it is a section.
    """
    option = catalog.by_name.get(name)
    return (
        option is not None
        and option.kind == "value"
        and not option.choices
        and option.type not in ("int", "float")
    )


def _path(arguments: EngineArguments, dest: str, group: str, catalog: Catalog) -> str:
    """Return the key path to blame: the user's, else the group with the argument's name."""
    if path := arguments.paths.get(dest) or arguments.empty.get(dest):
        return path
    option = catalog.by_name.get(dest) or next(
        (one for one in catalog.options.values() if one.dest == dest), None
    )
    return f"{group}.{option.name.replace('-', '_')}" if option else group


MEGATRON = Engine(
    name="megatron", task_types=("train",), distributions=("megatron-core",), build=build, check=check
)
