"""Qwen3: a Llama that normalizes queries and keys."""

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

NORMS = (
    layer("self_attention.q_layernorm.weight", "self_attn.q_norm.weight", "head"),
    layer("self_attention.k_layernorm.weight", "self_attn.k_norm.weight", "head"),
)

QWEN3 = llama_like(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    rows=(*FIRST, *ATTENTION, *NORMS, *MLP, *LAST),
    arguments={**ARGUMENTS, "qk_layernorm": True},
    config={"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
    written={"sliding_window": None},
    harmless=("sliding_window", "max_window_layers"),
)
