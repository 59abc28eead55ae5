"""Qwen1.5-MoE and Qwen2-MoE: a Qwen2 with experts, and one that every token passes through, with a gate."""

from __future__ import annotations

from megatron.flagscale.convert.families.base import SIZE, Setting
from megatron.flagscale.convert.families.decoder import ATTENTION, FIRST, LAST, layer, llama_like
from megatron.flagscale.convert.families.joins import Gated
from megatron.flagscale.convert.families.qwen2 import BIASES, QWEN2, as_vllm
from megatron.flagscale.convert.families.qwen_moe import (
    CHECKS,
    EXPERT_CONFIG,
    EXPERT_KEYS,
    EXPERT_SETTINGS,
    EXPERTS,
    HARMLESS,
    WRITTEN,
)

_WIDTH = "moe_shared_expert_intermediate_size"
_SHARED = (
    layer(
        "mlp.shared_experts.linear_fc1.weight",
        "mlp.shared_expert.gate_proj.weight mlp.shared_expert.up_proj.weight",
        "shared_gate+up hidden",
        Gated("shared_ffn"),
    ),
    layer("mlp.shared_experts.linear_fc2.weight", "mlp.shared_expert.down_proj.weight", "hidden shared_ffn"),
    layer("mlp.shared_experts.gate_weight", "mlp.shared_expert_gate.weight", "one hidden"),
)

QWEN2_MOE = llama_like(
    name="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    model_type="qwen2_moe",
    rows=(*FIRST, *ATTENTION, BIASES, *EXPERTS, *_SHARED, *LAST),
    keys=EXPERT_KEYS,
    arguments={**QWEN2.arguments, "moe_shared_expert_gate": True},
    config={**EXPERT_CONFIG, "qkv_bias": True},
    written=WRITTEN,
    checks={**CHECKS, "head_dim": as_vllm},
    settings=(*EXPERT_SETTINGS, Setting("shared_expert_intermediate_size", _WIDTH, kind=SIZE)),
    extents={
        "one": lambda model: 1,
        "shared_ffn": lambda model: model.settings[_WIDTH],
        "shared_gate+up": lambda model: 2 * model.settings[_WIDTH],
    },
    harmless=HARMLESS,
    defaults={"head_dim": None},
    is_unread_by_peft=True,
)
