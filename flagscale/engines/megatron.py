"""Megatron-core with NVIDIA's own trainer (`megatron.training`), started through `megatron.flagscale`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flagscale.config.engine_args import Catalog, EngineArguments, load_catalog, render
from flagscale.config.leaves import Leaf, flatten
from flagscale.config.locate import Locator
from flagscale.config.schema import Experiment
from flagscale.config.v060 import translate_task
from flagscale.engines.base import Engine
from flagscale.engines.megatron_cpu import cpu_findings, layers_on_cpu, on_cpu
from flagscale.engines.megatron_rules import remarks, rule_findings
from flagscale.engines.megatron_torch import torch_findings
from flagscale.errors import Problem, UserError
from flagscale.inputs.findings import data_findings
from flagscale.job import Host, Job, Role
from flagscale.parallel.degrees import degrees, findings
from flagscale.parallel.finding import Finding

CATALOG = Path(__file__).parent / "catalog" / "megatron.json"
SAVE_GRACE = 120.0
"""Seconds the ranks have after TERM where they save a checkpoint first (exit_signal_handler)."""
STOP_GRACE = 10.0


def build(experiment: Experiment, hosts: tuple[Host, ...], locator: Locator) -> Job:
    """Return the training job; see `engines.base.Engine.build`."""
    catalog = load_catalog(CATALOG)
    problems: list[Problem] = []
    group = experiment.task.type
    leaves = _flat(group, experiment.arguments, catalog, locator, problems)
    leaves, secrets, notices = translate_task(leaves, locator, problems)
    arguments = render([*_defaults(experiment, leaves), *leaves], catalog, locator, problems)
    if not problems:
        # A value that is not what it should be would be told again by every rule that uses it.
        for dest, what in _findings(arguments, hosts):
            problems.append(Problem(what, locator.where(_path(arguments, dest, group, catalog))))
    if problems:
        raise UserError(problems)
    for dest, what in remarks(arguments.values):
        notices.append(f"{locator.where(_path(arguments, dest, group, catalog))}: {what}")
    saves = arguments.values["exit_signal_handler"] and arguments.values["save"]
    return Job(
        name=experiment.name,
        task_type=group,
        engine="megatron",
        engine_version=catalog.version,
        role=Role(
            name="train",
            entrypoint=experiment.task.entrypoint,
            argv=arguments.argv,
            stop_grace=experiment.runner.stop_grace or (SAVE_GRACE if saves else STOP_GRACE),
        ),
        hosts=hosts,
        layout=str(degrees(arguments.values, sum(host.slots for host in hosts))),
        secrets=secrets,
        notices=tuple(notices),
    )


def check(group: str, arguments: Mapping[str, Any], locator: Locator) -> list[Problem]:
    """Return the mistakes of names and values; see `engines.base.Engine.check`."""
    catalog = load_catalog(CATALOG)
    problems: list[Problem] = []
    leaves = _flat(group, arguments, catalog, locator, problems)
    leaves, _, _ = translate_task(leaves, locator, problems)
    render(leaves, catalog, locator, problems)
    return problems


def _flat(
    group: str, arguments: Mapping[str, Any], catalog: Catalog, locator: Locator, problems: list[Problem]
) -> list[Leaf]:
    return flatten(group, arguments, lambda name: _takes_mapping(catalog, name), locator, problems)


def _takes_mapping(catalog: Catalog, name: str) -> bool:
    """Whether a mapping under this name is a value (JSON for the engine) rather than a section of the YAML.

    `optimizer:` is an argument with choices and also a natural section name: a mapping below it is a section.
    """
    option = catalog.find(name)
    return (
        option is not None
        and option.kind == "value"
        and not option.choices
        and option.type not in ("int", "float")
    )


def _defaults(experiment: Experiment, leaves: list[Leaf]) -> list[Leaf]:
    """The folders of the run directory, unless the task level names others (or `null`).

    A job that saves elsewhere also resumes from there: the engine would overwrite what it does not load.
    """
    below = experiment.exp_dir
    named = {leaf.name: leaf.value for leaf in leaves}
    folders = {
        "save": below / "checkpoints",
        "load": named.get("save") or below / "checkpoints",
        "tensorboard_dir": below / "tensorboard",
        "metrics_file": below / "metrics.jsonl",
    }
    if named.get("wandb_project"):
        folders["wandb_save_dir"] = below / "wandb"
    return [Leaf(name, str(path), name) for name, path in folders.items() if name not in named]


def _path(arguments: EngineArguments, dest: str, group: str, catalog: Catalog) -> str:
    """The key path to blame: what the user wrote, else the group with the argument's name."""
    if dest in arguments.paths:
        return arguments.paths[dest]
    option = catalog.find(dest) or next((one for one in catalog.options.values() if one.dest == dest), None)
    return f"{group}.{option.name.replace('-', '_')}" if option else group


def _findings(arguments: EngineArguments, hosts: tuple[Host, ...]) -> Iterator[Finding]:
    values, given = arguments.values, arguments.paths.keys()
    layers, told = values["transformer_impl"], {}
    if any(host.platform == "cpu" for host in hosts):
        told = dict(cpu_findings(values, given))
        yield from told.items()
        layers = layers_on_cpu(values, given)
        values = on_cpu(values)
    if layers == "torch":
        yield from (finding for finding in torch_findings(values) if finding[0] not in told)
    yield from rule_findings(values)
    yield from findings(values, sum(host.slots for host in hosts))
    yield from data_findings(values)


MEGATRON = Engine(
    name="megatron", task_types=("train",), distribution="megatron-core", build=build, check=check
)
