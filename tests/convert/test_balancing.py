"""The coefficient of the loss that balances the experts survives conversion, and means what is documented."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from megatron.flagscale.convert.convert import convert
from megatron.flagscale.convert.hf_config import read_config
from megatron.flagscale.convert.megatron_args import checkpoint_arguments
from megatron.flagscale.convert.megatron_model import model_of
from megatron.flagscale.convert.upcycle import Upcycling
from tests.convert.test_tables import MIXTRAL

Models = Callable[[str], Path]


def test_the_task_file_of_a_mixture_balances_its_experts(models: Models) -> None:
    task = yaml.safe_load((models("Mixtral") / "megatron" / "model.yaml").read_text())
    assert task["moe_router_load_balancing_type"] == "aux_loss"
    assert task["moe_aux_loss_coeff"] == 0.001


def test_a_dense_model_has_no_coefficient(models: Models) -> None:
    task = yaml.safe_load((models("Llama 2") / "megatron" / "model.yaml").read_text())
    assert not any("aux_loss" in name or "balancing" in name for name in task)


def test_an_upcycled_model_starts_with_the_recommended_coefficient(models: Models, tmp_path: Path) -> None:
    convert(models("Llama 2") / "hf", tmp_path / "moe", to="megatron", upcycling=Upcycling(4))
    assert yaml.safe_load((tmp_path / "moe" / "model.yaml").read_text())["moe_aux_loss_coeff"] == 0.01
    convert(tmp_path / "moe", tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["router_aux_loss_coef"] == 0.01


def test_the_coefficient_survives_a_round_trip(models: Models, tmp_path: Path) -> None:
    source = tmp_path / "hf"
    source.mkdir()
    for file in (models("Mixtral") / "hf").iterdir():
        (source / file.name).symlink_to(file)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").unlink()
    (source / "config.json").write_text(json.dumps({**config, "router_aux_loss_coef": 0.02}))
    convert(source, tmp_path / "megatron")
    convert(tmp_path / "megatron", tmp_path / "back")
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert written["router_aux_loss_coef"] == 0.02
    assert written["output_router_logits"] is False


def test_a_missing_key_stands_for_the_default_of_transformers() -> None:
    import transformers

    config = transformers.MixtralConfig().to_dict()
    default = config.pop("router_aux_loss_coef")
    model = read_config({**config, "architectures": ["MixtralForCausalLM"]}, "config.json")
    assert model.settings == {"moe_aux_loss_coeff": default}


@pytest.mark.parametrize(
    ("kinds", "weights", "coefficient"),
    [
        ("aux_loss", 0.3, 0.3),
        ("aux_loss", [0.3], 0.3),
        (["seq_aux_loss", "aux_loss"], [0.1, 0.2], 0.2),
        ("seq_aux_loss", 0.1, 0.0),
        ("none", 0.1, 0.0),
    ],
)
def test_only_the_loss_that_transformers_has_is_converted(
    kinds: str | list[str], weights: float | list[float], coefficient: float
) -> None:
    trained: dict[str, Any] = {"moe_router_load_balancing_type": kinds, "moe_aux_loss_coeff": weights}
    model = model_of({**checkpoint_arguments(MIXTRAL), **trained}, 10, "checkpoint")
    assert model.settings == {"moe_aux_loss_coeff": coefficient}


def test_the_same_number_weighs_more_in_megatron_by_layers_over_topk() -> None:
    from megatron.core.transformer.moe.moe_utils import switch_load_balancing_loss_func
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    tokens, experts, topk, layers = 50, 8, 2, 3
    logits = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(0))
    chosen = logits.topk(topk).indices.flatten().bincount(minlength=experts)
    of_a_layer = switch_load_balancing_loss_func(logits.softmax(-1), chosen, tokens, topk, experts, 1.0)
    of_all = load_balancing_loss_func((logits,) * layers, experts, topk)
    assert (layers * of_a_layer / of_all).item() == pytest.approx(layers / topk)
