"""The real sizes of the examples with pictures have the parameters that their files name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from flagscale.config.load import load_experiment
from flagscale.config.source_map import SourceMap
from flagscale.engines.megatron.adapter import MEGATRON
from flagscale.errors import UserError
from flagscale.values import Host
from flagscale.vision.arguments import vision_of
from flagscale.vision.tiling import Vision

pytestmark = pytest.mark.filterwarnings("ignore")  # the engine warns that TransformerEngine is missing

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = {
    ("llava", "config_7b"): (7.06e9, 32064),
    ("llava_onevision", "config_0.5b"): (0.894e9, 152000),
    ("llava_onevision", "config_1.5b"): (1.95e9, 152000),
    ("llava_onevision", "config_7b"): (8.03e9, 152128),
}
"""Example and configuration -> (parameters, tokens of the published model)."""


def values_of(example: str, name: str, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    """Return the arguments (by dest) of an example's job, whether or not its data is here."""
    monkeypatch.setattr("flagscale.engines.megatron.adapter._rule_problems", lambda *_: [])
    with initialize_config_dir(str(EXAMPLES / example / "conf"), version_base="1.3"):
        loaded = load_experiment(compose(name), SourceMap())
    assert loaded.experiment
    try:
        return MEGATRON.build(loaded.experiment, (Host(0, "a", 8, "nvidia"),), SourceMap()).arguments
    except UserError as error:
        raise AssertionError(str(error)) from None


def in_transformers(values: Mapping[str, Any], vocabulary: int) -> int:
    """Return the number of parameters of the same model in transformers, without those that are not used."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    tower = vision_of(values).tower
    sizes = {
        "hidden_size": tower.hidden,
        "intermediate_size": tower.ffn,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "image_size": tower.side,
        "patch_size": tower.patch_size,
    }
    text = {
        "hidden_size": values["hidden_size"],
        "intermediate_size": values["ffn_hidden_size"],
        "num_hidden_layers": values["num_layers"],
        "num_attention_heads": values["num_attention_heads"],
        "num_key_value_heads": values["num_query_groups"] if values["group_query_attention"] else None,
        "vocab_size": vocabulary,
    }
    ties = not values["untie_embeddings_and_output_weights"]
    with torch.device("meta"):
        if tower.kind == "clip":
            config = LlavaConfig(
                vision_config=CLIPVisionConfig(**sizes),
                text_config=LlamaConfig(**text),
                tie_word_embeddings=ties,
            )
            model: Any = LlavaForConditionalGeneration(config)
        else:
            vision = SiglipVisionConfig(**sizes, vision_use_head=False)
            config = LlavaOnevisionConfig(
                vision_config=vision, text_config=Qwen2Config(**text), tie_word_embeddings=ties
            )
            model = LlavaOnevisionForConditionalGeneration(config)
    model.tie_weights()
    named = [(name, one) for name, one in model.named_parameters() if "post_layernorm" not in name]
    assert all(one.is_meta for _, one in named)
    return sum(one.numel() for _, one in named)


def by_formula(values: Mapping[str, Any], vocabulary: int) -> int:
    """Count by hand: the language model, and the vision part."""
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    groups = values["num_query_groups"] if values["group_query_attention"] else heads
    narrow = hidden // heads * groups
    bias = hidden + 2 * narrow if values["add_qkv_bias"] else 0
    layer = (
        2 * hidden * hidden + 2 * hidden * narrow + bias + 3 * hidden * values["ffn_hidden_size"] + 2 * hidden
    )
    outputs = 2 if values["untie_embeddings_and_output_weights"] else 1
    text = outputs * vocabulary * hidden + values["num_layers"] * layer + hidden
    return int(text) + of_vision(vision_of(values), hidden)


def of_vision(vision: Vision, language: int) -> int:
    """Count a tower (patches, positions, layers with all biases), its projector, and the newline."""
    tower = vision.tower
    wide = tower.hidden
    begin = 3 * tower.patch_size**2 * wide + (tower.features + tower.has_class_token) * wide
    begin += 3 * wide if tower.has_class_token else wide  # the class token and its norm, or a bias
    layer = 4 * (wide * wide + wide) + 2 * wide * tower.ffn + tower.ffn + wide + 4 * wide
    projector = wide * language + language + language * language + language
    return begin + tower.layers * layer + projector + (language if vision.tiling else 0)


@pytest.mark.parametrize(("example", "name"), SIZES)
def test_the_model_has_the_size_in_its_file(example: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, vocabulary = SIZES[example, name]
    values = values_of(example, name, monkeypatch)
    count = by_formula(values, vocabulary)
    assert count == in_transformers(values, vocabulary)
    assert count == pytest.approx(expected, rel=0.01)
