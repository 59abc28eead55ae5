"""Megatron-core with NVIDIA's own trainer (`megatron.training`), started through `megatron.flagscale`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flagscale import platforms, registry
from flagscale.checks.data import inputs_of
from flagscale.checks.degrees import degrees, violations
from flagscale.checks.hetero.layout import HeteroLayout
from flagscale.checks.hetero.rules import UNSUPPORTED
from flagscale.checks.megatron import remarks, rule_violations
from flagscale.checks.worker import DATASETS, Capabilities, with_defaults, worker_violations
from flagscale.config.catalog import Catalog, load_catalog
from flagscale.config.compat_v060 import translate_task
from flagscale.config.engine_args import EngineArguments, FlatKey, flatten, render
from flagscale.config.schema import Experiment, Task
from flagscale.config.source_map import SourceMap
from flagscale.engines.base import Engine
from flagscale.engines.megatron import hetero
from flagscale.engines.megatron.program import TrainingProgram, read_program
from flagscale.errors import Problem, UserError, Violation
from flagscale.platforms import cpu
from flagscale.run.rundir import RunDir
from flagscale.values import Host, Job, Role

CATALOG = Path(__file__).parents[1] / "catalog" / "megatron.json"
TRAIN = "megatron.flagscale.train_gpt"
SAVE_GRACE = 120.0
"""Seconds that the ranks have after SIGTERM if they save a checkpoint first (exit_signal_handler)."""
STOP_GRACE = 10.0


def build(experiment: Experiment, hosts: tuple[Host, ...], source_map: SourceMap) -> Job:
    """Return the training job; see `engines.base.Engine.build`."""
    program, catalog = _program(experiment.task, source_map)
    problems: list[Problem] = []
    group = experiment.task.type
    flat_keys = _flat(group, experiment.arguments, catalog, source_map, problems)
    flat_keys, secrets, notices = translate_task(flat_keys, source_map, problems)
    flat_keys, meshes = hetero.take(flat_keys, source_map, problems, notices)
    arguments = render([*_defaults(experiment, flat_keys), *flat_keys], catalog, source_map, problems)
    arguments = replace(arguments, paths={**meshes.paths, **arguments.paths})
    if not problems:
        # A wrong value would be reported again by every rule that uses it.
        for dest, what in _violations(arguments, hosts, meshes.layout, program):
            problems.append(Problem(what, source_map.where(_path(arguments, dest, group, catalog))))
    problems += _missing_chips(experiment, hosts, source_map)
    if problems:
        raise UserError(problems)
    remarked = [list(remarks(values)) for values in hetero.variants(meshes.layout, arguments.values)]
    for dest, what in (remark for remark in remarked[0] if all(remark in others for others in remarked)):
        notices.append(f"{source_map.where(_path(arguments, dest, group, catalog))}: {what}")
    world_size = sum(host.slots for host in hosts)
    saves = arguments.values["exit_signal_handler"] and arguments.values["save"]
    return Job(
        name=experiment.name,
        task_type=group,
        engine="megatron",
        engine_version=catalog.version,
        role=Role(
            name="train",
            entrypoint=program.name,
            argv=arguments.argv,
            stop_grace=experiment.runner.stop_grace or (SAVE_GRACE if saves else STOP_GRACE),
        ),
        hosts=hosts,
        layout=str(meshes.layout or degrees(arguments.values, world_size)),
        picture=hetero.picture(meshes.layout, arguments.values),
        inputs=inputs_of(arguments.values, has_own_data=DATASETS in program.own_parts),
        secrets=secrets,
        texts=arguments.texts,
        notices=tuple(notices),
    )


def _missing_chips(experiment: Experiment, hosts: tuple[Host, ...], source_map: SourceMap) -> list[Problem]:
    """Return a problem per platform whose chip is not installed: every rank would fail."""
    hostfile = experiment.runner.hostfile
    where = f"{hostfile}: type=" if hostfile else source_map.where("experiment.runner.platform")
    kinds = [platforms.find(host.platform) for host in hosts]
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
    """Return the mistakes in names and values; see `engines.base.Engine.check`."""
    try:
        _, catalog = _program(task, source_map)
    except UserError as error:
        return list(error.problems)
    problems: list[Problem] = []
    flat_keys = _flat(task.type, arguments, catalog, source_map, problems)
    flat_keys, _, notices = translate_task(flat_keys, source_map, problems)
    flat_keys, _ = hetero.take(flat_keys, source_map, problems, notices)
    render(flat_keys, catalog, source_map, problems)
    return problems


def _program(task: Task, source_map: SourceMap) -> tuple[TrainingProgram, Catalog]:
    """Return the training program, and every argument that a key can name: the engine's and the program's."""
    catalog = load_catalog(CATALOG)
    where = source_map.where("experiment.task.entrypoint")
    program = read_program(task.entrypoint or TRAIN, catalog, where)
    return program, catalog if program.name == TRAIN else program.extend(catalog)


def _flat(
    group: str, arguments: Mapping[str, Any], catalog: Catalog, source_map: SourceMap, problems: list[Problem]
) -> list[FlatKey]:
    return flatten(group, arguments, lambda name: _takes_mapping(catalog, name), source_map, problems)


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


def _defaults(experiment: Experiment, flat_keys: list[FlatKey]) -> list[FlatKey]:
    """Return the run directory's folders and the run's name, unless the task level sets others (or `null`).

    A job that saves elsewhere also resumes from there: the engine would overwrite what it does not load.
    """
    run_dir = RunDir(experiment.exp_dir)
    named = {flat_key.name: flat_key.value for flat_key in flat_keys}
    defaults: dict[str, Path | str] = {
        "save": run_dir.checkpoints,
        "load": named.get("save") or run_dir.checkpoints,
        "tensorboard_dir": run_dir.tensorboard,
        "metrics_file": run_dir.metrics,
    }
    if named.get("wandb_project"):
        defaults |= {"wandb_save_dir": run_dir.path, "wandb_exp_name": experiment.name}
    return [FlatKey(name, str(value), name) for name, value in defaults.items() if name not in named]


def _path(arguments: EngineArguments, dest: str, group: str, catalog: Catalog) -> str:
    """Return the key path to blame: the user's, else the group with the argument's name."""
    if dest in arguments.paths:
        return arguments.paths[dest]
    option = catalog.by_name.get(dest) or next(
        (one for one in catalog.options.values() if one.dest == dest), None
    )
    return f"{group}.{option.name.replace('-', '_')}" if option else group


def _violations(
    arguments: EngineArguments,
    hosts: tuple[Host, ...],
    layout: HeteroLayout | None,
    program: TrainingProgram,
) -> Iterator[Violation]:
    """Yield each mistake once, even if several meshes have it."""
    machine = _machine(hosts)
    given = arguments.paths.keys()
    variants = [with_defaults(one, given, machine) for one in hetero.variants(layout, arguments.values)]
    found: dict[Violation, None] = {}
    for values in variants:
        found |= dict.fromkeys(rule_violations(values))
    if layout is None:
        found |= dict.fromkeys(violations(arguments.values, sum(host.slots for host in hosts)))
    else:
        found |= dict.fromkeys(hetero.violations(layout, arguments.values, hosts, [*given]))
    for violation in worker_violations(variants, machine, program.own_parts):
        # No program supports these arguments with meshes: only the rules of meshes report them.
        if layout is None or violation[0] not in UNSUPPORTED:
            found[violation] = None
    yield from found
    for option in program.arguments.values():
        if option.required and option.dest not in given:
            yield option.dest, f"`{option.name.replace('-', '_')}` is required by `{program.name}`"


def _machine(hosts: tuple[Host, ...]) -> Capabilities:
    """Return the launcher's facts about the ranks' machines; the rules of meshes report unequal ones."""
    kinds = [platforms.find(host.platform) for host in hosts]
    kind = next((kind for kind in kinds if kind.is_host_processor), kinds[0])
    # Only the worker can see whether fused layers are installed; on chips, they are assumed to be.
    has_chip = not kind.is_host_processor
    return Capabilities(has_chip, has_chip, cpu.BACKEND)


MEGATRON = Engine(
    name="megatron", task_types=("train",), distributions=("megatron-core",), build=build, check=check
)
