"""Llama with biases in all linear layers of attention and MLP, as in IBM's Granite Code.

Megatron has biases of the output projection only together with those of the MLP (`add_bias_linear`).
"""

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
from megatron.flagscale.convert.families.joins import GATED
from megatron.flagscale.convert.families.qwen2 import BIASES

OUTPUT_BIAS = layer("self_attention.linear_proj.bias", "self_attn.o_proj.bias", "hidden")
_MLP_BIASES = (
    layer("mlp.linear_fc1.bias", "mlp.gate_proj.bias mlp.up_proj.bias", "gate+up", GATED),
    layer("mlp.linear_fc2.bias", "mlp.down_proj.bias", "hidden"),
)

LLAMA_BIASED = llama_like(
    name="llama_biased",
    architecture="LlamaForCausalLM",
    model_type="llama",
    rows=(*FIRST, *ATTENTION, BIASES, OUTPUT_BIAS, *MLP, *_MLP_BIASES, *LAST),
    arguments={**ARGUMENTS, "add_bias_linear": True, "add_qkv_bias": True},
    config={"hidden_act": "silu", "attention_bias": True, "mlp_bias": True},
    # With another value, vLLM leaves out the biases of queries, keys and values; transformers ignores it.
    defaults={"qkv_bias": True},
    whole_heads=True,
)
