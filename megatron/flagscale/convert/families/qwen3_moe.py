"""Qwen3-MoE: a Qwen3 with a mixture of experts in place of the MLP."""

from __future__ import annotations

from megatron.flagscale.convert.families.decoder import ATTENTION, FIRST, LAST, llama_like
from megatron.flagscale.convert.families.qwen3 import NORMS, QWEN3
from megatron.flagscale.convert.families.qwen_moe import (
    CHECKS,
    EXPERT_CONFIG,
    EXPERT_KEYS,
    EXPERT_SETTINGS,
    EXPERTS,
    HARMLESS,
    WRITTEN,
)

QWEN3_MOE = llama_like(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    model_type="qwen3_moe",
    rows=(*FIRST, *ATTENTION, *NORMS, *EXPERTS, *LAST),
    keys=EXPERT_KEYS,
    arguments=QWEN3.arguments,
    config={**EXPERT_CONFIG, "attention_bias": False},
    written=WRITTEN,
    checks=CHECKS,
    settings=EXPERT_SETTINGS,
    harmless=HARMLESS,
    other_keys={"num_local_experts": "num_experts"},  # written by transformers 5
    defaults={"head_dim": None},
)
