"""Tables that Qwen2-MoE and Qwen3-MoE share: every layer has experts, named and chosen alike.

Checked against transformers 5.19 (`models/qwen2_moe`, `models/qwen3_moe`) and Megatron-core 0.19.2
(`transformer/moe/moe_utils.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from megatron.flagscale.convert.families.base import Setting
from megatron.flagscale.convert.families.decoder import KEYS, full_attention, layer
from megatron.flagscale.convert.families.joins import GATED
from megatron.flagscale.convert.families.mixtral import BALANCING
from megatron.flagscale.convert.model import Model

_EXPERT = "mlp.experts.{expert}."
EXPERTS = (
    layer(
        "mlp.linear_fc1.layer_norm_weight",
        "post_attention_layernorm.weight",
        "hidden",
        also="pre_mlp_layernorm.weight",
    ),
    layer("mlp.router.weight", "mlp.gate.weight", "experts hidden"),
    layer(
        "mlp.experts.experts.linear_fc1.weight",
        f"{_EXPERT}gate_proj.weight {_EXPERT}up_proj.weight",
        "gate+up hidden",
        GATED,
    ),
    layer("mlp.experts.experts.linear_fc2.weight", f"{_EXPERT}down_proj.weight", "hidden ffn"),
)
EXPERT_KEYS = {
    **KEYS,
    "ffn": "moe_intermediate_size",
    "experts": "num_experts",
    "topk": "num_experts_per_tok",
}
NORMALIZED = Setting("norm_topk_prob", "moe_router_pre_softmax", {True: False, False: True}, unset=False)
"""Whether the weights of the chosen experts add up to 1: the softmax over them alone, or over all experts."""
EXPERT_SETTINGS = (BALANCING, NORMALIZED)
EXPERT_CONFIG = {"hidden_act": "silu", "use_sliding_window": False, "decoder_sparse_step": 1}
"""Every layer has experts: with another `decoder_sparse_step`, some have none."""
WRITTEN: Mapping[str, Any] = {"sliding_window": None, "output_router_logits": False, "mlp_only_layers": []}
HARMLESS = ("sliding_window", "max_window_layers", "output_router_logits", "intermediate_size")
"""`intermediate_size` is the width of layers without experts."""


def _experts_everywhere(value: Any, model: Model) -> str:
    """Return "" if no layer is named that has no experts."""
    return "" if value in (None, []) else "only null or [] is supported"


def _single_expert(value: Any, model: Model) -> str:
    """Return "" if Megatron can normalize the weights, which it cannot do for a single expert."""
    if model.topk > 1 or model.settings["moe_router_pre_softmax"]:
        return ""
    return "Megatron does not normalize the weight of a single expert: `norm_topk_prob` must be false"


CHECKS: Mapping[str, Callable[[Any, Model], str]] = {
    "layer_types": full_attention,
    "mlp_only_layers": _experts_everywhere,
    "num_experts_per_tok": _single_expert,
}
