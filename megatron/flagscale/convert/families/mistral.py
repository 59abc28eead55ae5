"""Mistral: a Llama in which tokens may attend to a window of the preceding ones only."""

from __future__ import annotations

from megatron.flagscale.convert.families.decoder import ATTENTION, FIRST, KEYS, LAST, MLP, llama_like

MISTRAL = llama_like(
    name="mistral",
    architecture="MistralForCausalLM",
    model_type="mistral",
    rows=(*FIRST, *ATTENTION, *MLP, *LAST),
    keys={**KEYS, "window": "sliding_window"},
    config={"hidden_act": "silu"},
    mixture="mixtral",
)
