"""Vision towers: CLIP's and SigLIP's tables of tensors and keys, which models with pictures contain.

Their `keys` name fields of `Tower`. Names are those below `vision_tower.` in a model with pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flagscale.vision.tower import TOWERS
from megatron.flagscale.convert.families.base import Family, Row
from megatron.flagscale.convert.families.joins import COPY, TOWER_QKV, Join
from megatron.flagscale.convert.model import Model

PREFIX = "pictures.tower."
"""What Megatron's names of a tower's tensors begin with."""
ENCODER = "vision_model.encoder.layers."
"""What the names of a tower's layers begin with in Hugging Face's format."""


def _in_tower(field: Callable[[Any], int]) -> Callable[[Model], int]:
    return lambda model: field(model.vision.tower) if model.vision else 0


EXTENTS: Mapping[str, Callable[[Model], int]] = {
    "tower": _in_tower(lambda tower: tower.hidden),
    "tower_ffn": _in_tower(lambda tower: tower.ffn),
    "tower_qkv": _in_tower(lambda tower: 3 * tower.hidden),
    "patch": _in_tower(lambda tower: tower.patch_size),
    "colours": lambda model: 3,
    "features": _in_tower(lambda tower: tower.features + tower.has_class_token),
}
"""The extents that shapes of a tower and a projector can name."""


def _row(megatron: str, huggingface: str, shape: str) -> Row:
    return Row(PREFIX + megatron, (f"vision_model.{huggingface}",), tuple(shape.split()))


def _layer(megatron: str, huggingface: str, width: str, join: Join = COPY) -> tuple[Row, Row]:
    """Return the rows of a weight and its bias in a layer; `width` is the shape of the weight."""
    shape = tuple(width.split())
    names = [f"{ENCODER}{{tower_layer}}.{name}" for name in huggingface.split()]
    kinds = (("weight", shape), ("bias", shape[:1]))
    return tuple(  # type: ignore[return-value]
        Row(
            f"{PREFIX}decoder.layers.{{tower_layer}}.{megatron}{kind}",
            tuple(f"{name}.{kind}" for name in names),
            extents,
            join,
        )
        for kind, extents in kinds
    )


_LAYERS = (
    *_layer("self_attention.linear_qkv.layer_norm_", "layer_norm1", "tower"),
    *_layer(
        "self_attention.linear_qkv.",
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
        "tower_qkv tower",
        TOWER_QKV,
    ),
    *_layer("self_attention.linear_proj.", "self_attn.out_proj", "tower tower"),
    *_layer("mlp.linear_fc1.layer_norm_", "layer_norm2", "tower"),
    *_layer("mlp.linear_fc1.", "mlp.fc1", "tower_ffn tower"),
    *_layer("mlp.linear_fc2.", "mlp.fc2", "tower tower_ffn"),
)
_PATCHES = _row("patch_embedding.weight", "embeddings.patch_embedding.weight", "tower colours patch patch")
_POSITIONS = _row("position_embedding.weight", "embeddings.position_embedding.weight", "features tower")
_KEYS = {
    "side": "image_size",
    "patch_size": "patch_size",
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "heads": "num_attention_heads",
}
POST_NORM = {"vision_model.post_layernorm.weight": 1.0, "vision_model.post_layernorm.bias": 0.0}
"""The norm of a tower's last output, which no model with pictures computes, and what is written for it."""
_UNUSED = (".embeddings.position_ids", *(f"tower.{name}" for name in POST_NORM))


def _fixed(kind: str) -> dict[str, Any]:
    tower = TOWERS[kind]
    computed = {"hidden_act": tower.activation, "layer_norm_eps": tower.norm_eps}
    return {**computed, "num_channels": 3, "attention_dropout": 0.0}


CLIP = Family(
    name="clip",
    architecture="CLIPVisionModel",
    model_type="clip_vision_model",
    rows=(
        _row("class_embedding", "embeddings.class_embedding", "tower"),
        _PATCHES,
        _POSITIONS,
        _row("pre_layernorm.weight", "pre_layrnorm.weight", "tower"),
        _row("pre_layernorm.bias", "pre_layrnorm.bias", "tower"),
        *_LAYERS,
    ),
    keys=_KEYS,
    config=_fixed("clip"),
    harmless=("projection_dim", "initializer_factor", "vocab_size"),
    buffers=_UNUSED,
)
_HEAD = (
    *("probe", "attention.in_proj_weight", "attention.in_proj_bias", "attention.out_proj.weight"),
    *("attention.out_proj.bias", "layernorm.weight", "layernorm.bias", "mlp.fc1.weight", "mlp.fc1.bias"),
    *("mlp.fc2.weight", "mlp.fc2.bias"),
)
SIGLIP = Family(
    name="siglip",
    architecture="SiglipVisionModel",
    model_type="siglip_vision_model",
    rows=(
        _PATCHES,
        _row("patch_embedding.bias", "embeddings.patch_embedding.bias", "tower"),
        _POSITIONS,
        *_LAYERS,
    ),
    keys=_KEYS,
    config=_fixed("siglip"),
    written={"vision_use_head": False},
    harmless=("vision_use_head", "projection_dim", "initializer_factor"),
    buffers=(*_UNUSED, *(f".vision_model.head.{name}" for name in _HEAD)),
)
TABLES: Mapping[str, Family] = {"clip": CLIP, "siglip": SIGLIP}
"""The table of each kind of tower (`Tower.kind`)."""
