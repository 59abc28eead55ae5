"""The environment of a job: for all hosts, for a type, for one host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig

from flagscale.config.load import load_experiment
from flagscale.config.schema import Environment, Experiment
from flagscale.config.secrets import MASK
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem
from flagscale.plan.prepare import config_text
from tests.unit.conftest import EXPERIMENT
from tests.unit.plans import make_plan

ENVS = """\
  envs:
    PLACE: all
    COMMON: 1
    device_type_specific:
      A100: {PLACE: type, TYPE: true}
      chip: {PLACE: chip}
    node_specific:
      node1: {PLACE: host, HOST: 0.5}
  runner:"""
TEXT = EXPERIMENT.replace("  runner:", ENVS)


def test_the_more_specific_setting_wins(load: Callable[..., Experiment]) -> None:
    envs = load(TEXT).envs
    assert envs.common() == {"PLACE": "all", "COMMON": "1"}
    assert envs.on_host("node0", "cpu") == envs.common()
    assert envs.on_host("node0", "A100") == {"PLACE": "type", "COMMON": "1", "TYPE": "true"}
    assert envs.on_host("node1", "cpu") == {"PLACE": "host", "COMMON": "1", "HOST": "0.5"}
    assert envs.on_host("node1", "A100") == {"PLACE": "host", "COMMON": "1", "TYPE": "true", "HOST": "0.5"}


def test_every_host_of_the_plan_has_its_own() -> None:
    envs = {
        "SHARED": "all",
        "device_type_specific": {"chip": {"SHARED": "type"}},
        "node_specific": {"node1": {"SHARED": "host", "CHIP_MODE": "slow"}},
    }
    first, second = (node.env for node in make_plan(Path("/r"), 1, 1, envs=envs).nodes)
    assert (first["SHARED"], first["CHIP_MODE"]) == ("type", "fast")
    assert (second["SHARED"], second["CHIP_MODE"]) == ("host", "slow")


@pytest.mark.parametrize("section", ["device_type_specific", "node_specific"])
def test_a_mistake_is_reported_with_its_key(mistakes: Callable[..., list[Problem]], section: str) -> None:
    (problem,) = mistakes(TEXT, f"experiment.envs.{section}.x.A-B=1")
    assert problem.where == f"command line: experiment.envs.{section}.x.A-B"
    assert "letters, digits and `_`" in problem.what
    (problem,) = mistakes(TEXT, f"experiment.envs.{section}.x.HF_TOKEN=hf_secret")
    assert problem.where == f"command line: experiment.envs.{section}.x.HF_TOKEN"
    assert problem.what == "`HF_TOKEN` is a secret: it can only be set for all hosts"
    (problem,) = mistakes(TEXT, f"experiment.envs.{section}=x")
    assert problem.what == "a group of keys is expected here"
    (problem,) = mistakes(TEXT, f"experiment.envs.{section}.x={{A: {{b: 1}}}}")
    assert "valid string" in problem.what


def test_every_wrong_name_is_reported(mistakes: Callable[..., list[Problem]]) -> None:
    found = mistakes(TEXT, "experiment.envs.A-B=1", "experiment.envs.C-D=1")
    assert [problem.where.rpartition(".")[2] for problem in found] == ["A-B", "C-D"]


def test_it_is_recorded_as_given(
    load: Callable[..., Experiment], compose: Callable[..., tuple[DictConfig, SourceMap]]
) -> None:
    """The `config.yaml` of a run directory is a configuration again, the same except for secrets."""
    experiment = load(TEXT, "experiment.runner.nnodes='2:4'", "experiment.runner.host_paths={a: {/x: /y}}")
    assert load_experiment(*compose(config_text(experiment, {}))).experiment == experiment
    plain = load()
    assert load_experiment(*compose(config_text(plain, {}))).experiment == plain
    secret = load(TEXT, "experiment.envs.HF_TOKEN=hf_secret")
    text = config_text(secret, {})
    assert "hf_secret" not in text
    again = load_experiment(*compose(text)).experiment
    assert again is not None
    assert again.envs == Environment(**{**secret.envs.model_dump(), "HF_TOKEN": MASK})


def test_only_keys_that_differ_from_their_default_are_recorded(load: Callable[..., Experiment]) -> None:
    """So that a new key with a default does not change recorded configurations."""
    experiment = load(EXPERIMENT, "experiment.runner.max_restarts=0", "experiment.cmds.after_stop=''")
    text = config_text(experiment, {})
    section = yaml.safe_load(text)["experiment"]
    assert [*section] == ["exp_name", "exp_dir", "task", "runner"]
    assert section["task"] == {
        "type": "train",
        "backend": "megatron",
        "entrypoint": "megatron.flagscale.train_gpt",
    }
    assert section["runner"] == {"nproc_per_node": 4}
