"""The examples with real sizes have as many parameters as the published models."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest

from benchmarks.recipes_table import published
from flagscale_testing.example_jobs import ROOT, estimated, parameters, undivided
from flagscale_testing.meta_model import engine_weights
from tests.convert.published_sizes import MODELS

pytestmark = pytest.mark.filterwarnings("ignore")  # the engine warns that TransformerEngine is missing

MANY_EXPERTS = ("qwen/config_qwen3_30b_a3b", "deepseek/config_v2_lite", "deepseek/config_v3")
"""The engine takes a module per expert: up to 15,000, which take a minute."""


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def in_transformers(example: str) -> int:
    """Return the parameters of the model that transformers makes of the published `config.json`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    unread = ("quantization_config", "auto_map")  # the weights in fp8, and Python files of the folder
    config = {key: deepcopy(value) for key, value in MODELS[example].items() if key not in unread}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    assert all(one.is_meta for one in model.parameters())
    return sum(one.numel() for one in model.parameters())


@pytest.mark.parametrize("example", MODELS)
def test_an_example_has_the_parameters_of_the_published_model(example: str) -> None:
    job, found = estimated(example)
    count = parameters(found.training)
    assert count == in_transformers(example)
    assert f"{count / 1e9:.3g} billion" == published(job.name)


@pytest.mark.parametrize(
    "example",
    [pytest.param(one, marks=pytest.mark.slow if one in MANY_EXPERTS else ()) for one in MODELS],
)
def test_the_engine_builds_an_example_with_these_parameters(example: str) -> None:
    training = estimated(example)[1].training
    whole = undivided(training)
    weights = engine_weights(whole, whole.layout.stages[0], rank=0)
    built = sum(count * math.prod(shape) for (_, shape, _), count in weights.items())
    assert built == parameters(training)
