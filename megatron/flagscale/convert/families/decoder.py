"""Tables that Llama-like decoders share: RMSNorm, rotary positions, no biases, a gated MLP.

Define such a family as `llama_like(...)` with its names, its rows, and the values that differ.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from megatron.flagscale.convert.families.base import Family, Row
from megatron.flagscale.convert.families.joins import COPY, GATED, QKV, Join
from megatron.flagscale.convert.model import Model


def layer(megatron: str, huggingface: str, shape: str, join: Join = COPY, also: str = "", **more: Any) -> Row:
    """Return the row of a tensor in a layer; names and extents are separated by spaces."""
    return Row(
        f"decoder.layers.{{layer}}.{megatron}",
        tuple(f"model.layers.{{layer}}.{name}" for name in huggingface.split()),
        tuple(shape.split()),
        join,
        f"decoder.layers.{{layer}}.{also}" if also else "",
        **more,
    )


def full_attention(value: Any, model: Model) -> str:
    """Return "" if `layer_types` agrees with the window, which is that of all layers."""
    if value is None or (value == ["full_attention"] * model.layers and not model.window):
        return ""
    only = "" if model.window else f" or {model.layers} times 'full_attention'"
    return f"only null{only} is supported"


FIRST = (Row("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), ("vocab", "hidden")),)
ATTENTION = (
    layer("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight", "hidden"),
    layer(
        "self_attention.linear_qkv.weight",
        "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight",
        "qkv hidden",
        QKV,
    ),
    layer("self_attention.linear_proj.weight", "self_attn.o_proj.weight", "hidden query"),
)
MLP = (
    layer("mlp.linear_fc1.layer_norm_weight", "post_attention_layernorm.weight", "hidden"),
    layer("mlp.linear_fc1.weight", "mlp.gate_proj.weight mlp.up_proj.weight", "gate+up hidden", GATED),
    layer("mlp.linear_fc2.weight", "mlp.down_proj.weight", "hidden ffn"),
)
LAST = (
    Row("decoder.final_layernorm.weight", ("model.norm.weight",), ("hidden",)),
    Row("output_layer.weight", ("lm_head.weight",), ("vocab", "hidden")),
)

KEYS = {
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "groups": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab": "vocab_size",
    "positions": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "attention_dropout": "attention_dropout",
}
ARGUMENTS = {
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "swiglu": True,
    "add_bias_linear": False,
}

llama_like = partial(
    Family,
    keys=KEYS,
    arguments=ARGUMENTS,
    checks={"layer_types": full_attention},
    buffers=(".rotary_emb.inv_freq",),  # in older checkpoints
)
