"""Qwen2 and Qwen2.5: a Llama with biases for query, key and value."""

from __future__ import annotations

from typing import Any

from megatron.flagscale.convert.families.decoder import (
    ARGUMENTS,
    ATTENTION,
    FIRST,
    LAST,
    MLP,
    full_attention,
    layer,
    llama_like,
)
from megatron.flagscale.convert.families.joins import QKV
from megatron.flagscale.convert.model import Model

BIASES = layer(
    "self_attention.linear_qkv.bias",
    "self_attn.q_proj.bias self_attn.k_proj.bias self_attn.v_proj.bias",
    "qkv",
    QKV,
)


def as_vllm(head_dim: Any, model: Model) -> str:
    """Return "" if the head size is the one that vLLM 0.32 computes, which does not read the key."""
    computed = model.hidden // model.heads
    if model.head_dim == computed:
        return ""
    return f"vLLM computes it as hidden_size / num_attention_heads: {computed}"


QWEN2 = llama_like(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    rows=(*FIRST, *ATTENTION, BIASES, *MLP, *LAST),
    arguments={**ARGUMENTS, "add_qkv_bias": True},
    config={"hidden_act": "silu", "use_sliding_window": False},
    written={"sliding_window": None},
    checks={"layer_types": full_attention, "head_dim": as_vllm},
    harmless=("sliding_window", "max_window_layers"),
)
