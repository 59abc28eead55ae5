"""The examples with real sizes train exactly the published models: a slip in a size cannot hide."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import pytest
from omegaconf import OmegaConf

from flagscale import platforms
from flagscale.checks.experts import expert_layers
from flagscale.config.source_map import SourceMap
from flagscale.errors import UserError
from flagscale.estimates.job import checked_job
from flagscale_testing.example_jobs import FOLDERS, ON_A_PLATFORM, ROOT, composed, experiment_file, real_sizes
from megatron.flagscale.convert.families import registry
from megatron.flagscale.convert.hf_config import read_config, write_config
from megatron.flagscale.convert.megatron_model import model_of
from tests.convert.published_sizes import PUBLISHED

EXAMPLES = [example for folder in FOLDERS for example in real_sizes(folder)]


def arguments_of(example: str, changes: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Return the arguments (by dest) with which an example trains, after changes to its task file."""
    config = composed(experiment_file(example))
    OmegaConf.update(config, "train", {**changes}, force_add=True)
    with mock.patch.dict(os.environ, ON_A_PLATFORM), platforms.any_platform():
        return {**checked_job(config, SourceMap()).job.arguments}


def published_folder(example: str, folder: Path) -> dict[str, Any]:
    """Write the published folder of an example's model; return the section that starts from it."""
    (folder / "config.json").write_text(json.dumps(PUBLISHED[example]))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return {"checkpoint": {"pretrained_checkpoint": str(folder)}}


def as_in_a_checkpoint(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments as the engine keeps them, with the pattern of the layers evaluated."""
    if not isinstance(arguments["moe_layer_freq"], str):
        return {**arguments}
    return {**arguments, "moe_layer_freq": [int(has_experts) for has_experts in expert_layers(arguments)]}


def test_every_example_with_real_sizes_has_a_published_configuration() -> None:
    assert {*EXAMPLES} == {*PUBLISHED}


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_checkpoint_of_an_example_is_exported_as_the_published_model(
    example: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    # Llama 2 is published in fp16; all examples train in bf16.
    model = replace(read_config(PUBLISHED[example], "config.json"), dtype="bfloat16")
    arguments = as_in_a_checkpoint(arguments_of(example))
    trained = model_of(arguments, model.vocab, "the example", model.family)
    assert write_config(trained, {}) == write_config(model, {})
    assert arguments["vocab_size"] == model.vocab
    task = registry.load(model.family).task
    assert {name: arguments[name] for name in task} == task


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_can_start_from_the_published_folder(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher compares its arguments with those that the converter writes for the folder."""
    monkeypatch.chdir(ROOT)
    changes = {"system": published_folder(example, tmp_path)}
    assert arguments_of(example, changes)["pretrained_checkpoint"] == str(tmp_path)


@pytest.mark.parametrize(
    ("example", "changes", "found"),
    [
        ("llama/config_llama3_8b", {"rotary_base": 50000}, "`rotary_base` is 50000, but"),
        (
            "qwen/config_qwen3_30b_a3b",
            {"experts": {"moe_ffn_hidden_size": 786}},
            "`moe_ffn_hidden_size` is 786, but",
        ),
        ("deepseek/config_v3", {"attention": {"kv_lora_rank": 521}}, "`kv_lora_rank` is 521, but"),
    ],
)
def test_a_slip_in_an_example_is_found(
    example: str, changes: dict[str, Any], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    started = {"system": published_folder(example, tmp_path), "model": changes}
    with pytest.raises(UserError, match=found):
        arguments_of(example, started)
