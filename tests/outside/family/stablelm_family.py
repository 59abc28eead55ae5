"""StableLM for FlagScale's converter: a Llama with LayerNorm and partial rotary positions."""

from __future__ import annotations

from megatron.flagscale.convert.families.base import Row, Setting
from megatron.flagscale.convert.families.decoder import (
    ARGUMENTS,
    ATTENTION,
    FIRST,
    KEYS,
    LAST,
    MLP,
    layer,
    llama_like,
)

_NORM, _OUTPUT = LAST
_BIASES = (
    layer("self_attention.linear_qkv.layer_norm_bias", "input_layernorm.bias", "hidden"),
    layer("mlp.linear_fc1.layer_norm_bias", "post_attention_layernorm.bias", "hidden"),
)
_NORM_BIAS = Row("decoder.final_layernorm.bias", ("model.norm.bias",), ("hidden",))

STABLELM = llama_like(
    name="stablelm",
    architecture="StableLmForCausalLM",
    model_type="stablelm",
    rows=(*FIRST, *ATTENTION, *MLP, *_BIASES, _NORM, _NORM_BIAS, _OUTPUT),
    keys={name: key for name, key in KEYS.items() if name != "head_dim"}
    | {"norm_eps": "layer_norm_eps", "hidden_dropout": "hidden_dropout"},
    arguments={**ARGUMENTS, "normalization": "LayerNorm"},
    settings=(Setting("partial_rotary_factor", "rotary_percent"),),
    config={"hidden_act": "silu"},
)
