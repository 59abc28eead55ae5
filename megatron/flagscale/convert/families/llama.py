"""Llama 1, 2 and 3."""

from __future__ import annotations

from megatron.flagscale.convert.families.decoder import ATTENTION, FIRST, LAST, MLP, llama_like

LLAMA = llama_like(
    name="llama",
    architecture="LlamaForCausalLM",
    model_type="llama",
    rows=(*FIRST, *ATTENTION, *MLP, *LAST),
    config={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    other_forms={"AquilaForCausalLM": "aquila", "AquilaModel": "aquila"},
    mixture="mixtral",
    whole_heads=True,
)
