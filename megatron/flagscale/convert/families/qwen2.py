"""Qwen2 and Qwen2.5: a Llama with biases for query, key and value."""

from __future__ import annotations

from megatron.flagscale.convert.families.decoder import (
    ARGUMENTS,
    ATTENTION,
    FIRST,
    LAST,
    MLP,
    layer,
    llama_like,
)
from megatron.flagscale.convert.families.joins import QKV

_BIASES = layer(
    "self_attention.linear_qkv.bias",
    "self_attn.q_proj.bias self_attn.k_proj.bias self_attn.v_proj.bias",
    "qkv",
    QKV,
)

QWEN2 = llama_like(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    rows=(*FIRST, *ATTENTION, _BIASES, *MLP, *LAST),
    arguments={**ARGUMENTS, "add_qkv_bias": True},
    config={"hidden_act": "silu", "use_sliding_window": False},
    written={"sliding_window": None},
    harmless=("sliding_window", "max_window_layers"),
)
