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
from flagscale.engines.megatron_data import data_findings
from flagscale.errors import Problem, UserError
from flagscale.job import Host, Job, Role
from flagscale.parallel.degrees import Finding, degrees, findings

CATALOG = Path(__file__).parent / "catalog" / "megatron.json"
SAVE_GRACE = 120.0
"""Seconds the ranks have after TERM where they save a checkpoint first (exit_signal_handler)."""
STOP_GRACE = 10.0

_REQUIRED = {
    "num_layers": "the number of transformer layers",
    "hidden_size": "the width of the model",
    "num_attention_heads": "the number of attention heads",
    "seq_length": "tokens in a sample",
    "max_position_embeddings": "the longest sequence the model can read",
    "lr": "the learning rate",
    "tokenizer_type": "HuggingFaceTokenizer, NullTokenizer, ...",
}


def build(experiment: Experiment, hosts: tuple[Host, ...], locator: Locator) -> Job:
    """Return the training job; see `engines.base.Engine.build`."""
    catalog = load_catalog(CATALOG)
    problems: list[Problem] = []
    group = experiment.task.type
    leaves = flatten(group, experiment.arguments, lambda name: _takes_mapping(catalog, name), locator, problems)
    leaves, secrets, notices = translate_task(leaves, locator, problems)
    arguments = render([*_defaults(experiment, leaves), *leaves], catalog, locator, problems)
    world_size = sum(host.slots for host in hosts)
    if not problems:
        for dest, what in _findings(arguments.values, world_size):
            problems.append(Problem(what, locator.where(_path(arguments, dest, group, catalog))))
    if problems:
        raise UserError(problems)
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
        layout=str(degrees(arguments.values, world_size)),
        secrets=secrets,
        notices=tuple(notices),
    )


def _takes_mapping(catalog: Catalog, name: str) -> bool:
    """Whether a mapping under this name is a value (JSON for the engine) rather than a section of the YAML.

    `optimizer:` is an argument with choices and also a natural section name: a mapping below it is a section.
    """
    option = catalog.find(name)
    return option is not None and option.kind == "value" and not option.choices and option.type not in ("int", "float")


def _defaults(experiment: Experiment, leaves: list[Leaf]) -> list[Leaf]:
    """The folders of the run directory, unless the task level names others (or `null`)."""
    below = experiment.exp_dir
    folders = {
        "save": below / "checkpoints",
        "load": below / "checkpoints",
        "tensorboard_dir": below / "tensorboard",
        "metrics_file": below / "metrics.jsonl",
    }
    named = {leaf.name: leaf.value for leaf in leaves}
    if named.get("wandb_project"):
        folders["wandb_save_dir"] = below / "wandb"
    return [Leaf(name, str(path), name) for name, path in folders.items() if name not in named]


def _path(arguments: EngineArguments, dest: str, group: str, catalog: Catalog) -> str:
    """The key path to blame: what the user wrote, else the group with the argument's name."""
    if dest in arguments.paths:
        return arguments.paths[dest]
    option = next((option for option in catalog.options.values() if option.dest == dest), None)
    return f"{group}.{option.name.replace('-', '_')}" if option else group


def _findings(values: Mapping[str, Any], world_size: int) -> Iterator[Finding]:
    missing = [name for name in _REQUIRED if values.get(name) is None]
    for name in missing:
        yield name, f"`{name}` is required: {_REQUIRED[name]}"
    if not values.get("train_iters") and not values.get("train_samples"):
        yield "train_iters", "`train_iters` or `train_samples` is required: how long to train"
    if values.get("train_iters") and values.get("train_samples"):
        yield "train_samples", "give `train_iters` or `train_samples`, not both"
    if values.get("fp16") and values.get("bf16"):
        yield "bf16", "give `fp16` or `bf16`, not both"
    yield from findings(values, world_size)
    yield from data_findings(values)


MEGATRON = Engine(name="megatron", task_types=("train",), distribution="megatron-core", build=build)
