"""DeepSeek-V3, R1 and Moonlight: experts chosen by sigmoids and biases, and multi-token prediction."""

from __future__ import annotations

from typing import Any

from megatron.flagscale.convert.families.base import Family
from megatron.flagscale.convert.families.decoder import FIRST, LAST, layer
from megatron.flagscale.convert.families.deepseek import (
    CHECKS,
    DEEPSEEK_ARGUMENTS,
    DEEPSEEK_KEYS,
    EXTENTS,
    LAYER,
    NOT_IN_TRANSFORMERS,
    SETTINGS,
    TASK,
    caveat,
    computed,
    has_experts,
    with_mtp,
)
from megatron.flagscale.convert.model import Model

_BIAS = layer(
    "mlp.router.expert_bias",
    "mlp.gate.e_score_correction_bias",
    "experts",
    when=has_experts,
    exact=True,  # both libraries keep it in fp32: rounded, it would choose other experts
)


def _normalized(value: Any, model: Model) -> str:
    """Megatron does not divide the weight of a single expert by itself (`moe_utils`), transformers does."""
    return "" if model.topk > 1 else "Megatron does not normalize the weight of a single expert"


def _pairs(value: Any, model: Model) -> str:
    """transformers and vLLM compare groups by the sum of two scores, and fail if there is only one."""
    size = model.experts // model.settings["moe_router_num_groups"]
    return "each group has 1 expert, but groups are compared by their 2 best" if size == 1 else ""


DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    model_type="deepseek_v3",
    other_types=("kimi_k2",),
    rows=with_mtp((*FIRST, *LAYER, _BIAS, *LAST)),
    keys={**DEEPSEEK_KEYS, "mtp": "num_nextn_predict_layers"},
    arguments={
        **DEEPSEEK_ARGUMENTS,
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
    },
    computed=computed(best=2),
    task=TASK,
    ignored=("moe_router_pre_softmax",),
    scalings=("yarn",),
    config={
        "hidden_act": "silu",
        "attention_bias": False,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "moe_layer_freq": 1,
        "rope_interleave": True,
    },
    checks={**CHECKS, "num_experts_per_tok": _normalized, "n_group": _pairs},
    harmless=("ep_size", "output_router_logits"),
    defaults=NOT_IN_TRANSFORMERS,
    settings=SETTINGS,
    extents=EXTENTS,
    caveat=caveat,
)
