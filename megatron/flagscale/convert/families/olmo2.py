"""OLMo-2: a Llama with norms after attention and MLP, and of all queries and all keys together."""

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

_NORMS = (
    layer("self_attention.query_norm.weight", "self_attn.q_norm.weight", "query"),
    layer("self_attention.key_norm.weight", "self_attn.k_norm.weight", "key"),
    layer("post_attention_norm.weight", "post_attention_layernorm.weight", "hidden"),
    layer("post_mlp_norm.weight", "post_feedforward_layernorm.weight", "hidden"),
)
_LAYER = tuple(row for row in (*ATTENTION, *MLP) if not row.megatron.endswith("layer_norm_weight"))

OLMO2 = llama_like(
    name="olmo2",
    architecture="Olmo2ForCausalLM",
    model_type="olmo2",
    rows=(*FIRST, *_LAYER, *_NORMS, *LAST),
    arguments={**ARGUMENTS, "norm_position": "post", "qk_layernorm_across_heads": True},
    config={"hidden_act": "silu", "attention_bias": False},
    task={"transformer_impl": "torch"},
)
