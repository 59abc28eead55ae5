"""The examples with the published sizes of well-known models: their files, jobs and estimates."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from unittest import mock

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from flagscale.checks.hetero.layout import HeteroLayout, Mesh
from flagscale.config.command import Request
from flagscale.config.source_map import SourceMap
from flagscale.estimates.job import estimate_of
from flagscale.frozen import replace
from flagscale.planner.estimate import Estimate
from flagscale.planner.parameters import stage_parameters
from flagscale.planner.training import Block, Training
from flagscale.values import Job

ROOT = Path(__file__).parents[1]
FOLDERS = ("llama", "mistral", "mixtral", "qwen", "deepseek")
"""Of the examples; each has models of one family of names."""
CHIP = "H100"
"""The chip of hosts to which a hostfile gives no type."""
ON_A_PLATFORM = {"PET_NNODES": "2", "PET_NODE_RANK": "0", "PET_MASTER_ADDR": "worker0"}
"""What a cloud platform sets on the first of 2 hosts, for examples with `type: cloud`."""


def experiment_file(example: str) -> Path:
    """Return the file of `FOLDER/NAME`."""
    folder, name = example.split("/")
    return ROOT / "examples" / folder / "conf" / f"{name}.yaml"


def composed(config: Path) -> DictConfig:
    """Return an experiment file together with its task file."""
    with initialize_config_dir(str(config.parent), version_base="1.3"):
        return compose(config.stem)


def real_sizes(folder: str) -> list[str]:
    """Return the examples (`FOLDER/NAME`) of a folder whose models have published sizes.

    These run on random tokens as they are; the others bring their text.
    """
    names = sorted(file.stem for file in (ROOT / "examples" / folder / "conf").glob("*.yaml"))
    configs = {f"{folder}/{name}": composed(experiment_file(f"{folder}/{name}")) for name in names}
    return [
        example for example, config in configs.items() if OmegaConf.select(config, "train.data.mock_data")
    ]


@cache
def estimated(example: str) -> tuple[Job, Estimate]:
    """Return the job of an example and its estimate.

    The hostfiles are found from the root of the repository, which must be the working directory.
    """
    config = composed(experiment_file(example))
    hostfile = OmegaConf.select(config, "experiment.runner.hostfile")
    has_types = hostfile and "type=" in (ROOT / hostfile).read_text()
    with mock.patch.dict(os.environ, ON_A_PLATFORM):
        return estimate_of(Request(config, SourceMap()), "" if has_types else CHIP)


def undivided(training: Training) -> Training:
    """Return the same training in one process, without padding of the vocabulary and prediction heads."""
    model = replace(training.model, prediction_heads=0)
    return replace(
        training,
        model=model,
        layout=HeteroLayout((Mesh(layers=((model.layers,),)),)),
        blocks=(Block(training.blocks[0].chip, micro_batch=1, per_node=1),),
        padded_vocabulary=model.vocabulary,
        prediction_chunk=None,
    )


def parameters(training: Training) -> int:
    """Return the number of the whole model's parameters by the planner, without prediction heads."""
    whole = undivided(training)
    return sum(weight.elements for weight in stage_parameters(whole, whole.layout.stages[0]).weights)
