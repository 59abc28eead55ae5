"""Gemma-2: every other layer has a window; attention scores and logits have soft caps."""

from __future__ import annotations

from flagscale.checks.gemma import ATTENTION_CAP
from megatron.flagscale.convert.families.base import Setting
from megatron.flagscale.convert.families.decoder import ATTENTION, FIRST, LAST, llama_like
from megatron.flagscale.convert.families.gemma import (
    CAP,
    CONFIG,
    GEMMA_ARGUMENTS,
    GEMMA_KEYS,
    HARMLESS,
    NORMED_MLP,
    SETTINGS,
    SKIP,
    TASK,
    layer_types,
    same_types,
    shorter_window,
    tanh_gelu,
)
from megatron.flagscale.convert.model import Model

_ONE_IN = 2
_TYPES = layer_types(lambda model: _ONE_IN)


def _caveat(model: Model) -> str:
    cap = model.settings[ATTENTION_CAP]
    of_transformers = (
        f"transformers ignores {ATTENTION_CAP} {cap:g} with its default kernel: open the folder there with "
        "attn_implementation='eager'"
        if cap is not None
        else ""
    )
    of_vllm = "" if model.tied else "vLLM takes the embedding for the output, which this model does not tie"
    return "; ".join(filter(None, (of_transformers, of_vllm)))


GEMMA2 = llama_like(
    name="gemma2",
    architecture="Gemma2ForCausalLM",
    model_type="gemma2",
    rows=(*FIRST, *ATTENTION, *NORMED_MLP, *LAST),
    keys=GEMMA_KEYS,
    arguments={**GEMMA_ARGUMENTS, SKIP: _ONE_IN},
    task=TASK,
    scalings=("linear",),
    settings=(*SETTINGS, Setting(ATTENTION_CAP, ATTENTION_CAP, kind=CAP)),
    config=CONFIG,
    written={"layer_types": _TYPES},
    checks={"layer_types": same_types(_TYPES), "sliding_window": shorter_window, "hidden_act": tanh_gelu},
    harmless=HARMLESS,
    whole_heads=True,
    caveat=_caveat,
)
