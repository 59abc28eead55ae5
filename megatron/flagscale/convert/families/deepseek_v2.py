"""DeepSeek-V2 and V2-Lite: experts chosen by a softmax; V2-Lite does not compress queries."""

from __future__ import annotations

from typing import Any

from megatron.flagscale.convert.families.base import Family
from megatron.flagscale.convert.families.deepseek import (
    CHECKS,
    DEEPSEEK_ARGUMENTS,
    DEEPSEEK_KEYS,
    EXTENTS,
    NOT_IN_TRANSFORMERS,
    ROWS,
    SETTINGS,
    TASK,
    caveat,
    computed,
)
from megatron.flagscale.convert.model import Model


def _method(model: Model) -> str:
    return "greedy" if model.settings["moe_router_num_groups"] == 1 else "group_limited_greedy"


def _fits_groups(value: Any, model: Model) -> str:
    if value == _method(model):
        return ""
    return f"with `n_group` {model.settings['moe_router_num_groups']}, only {_method(model)!r} is supported"


def _whole_heads(value: Any, model: Model) -> str:
    """transformers refuses other sizes, although the width of a head is another."""
    return f"it must be a multiple of `num_attention_heads`: {model.heads}" if value % model.heads else ""


DEEPSEEK_V2 = Family(
    name="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    model_type="deepseek_v2",
    rows=ROWS,
    keys=DEEPSEEK_KEYS,
    arguments={**DEEPSEEK_ARGUMENTS, "moe_router_score_function": "softmax", "moe_router_pre_softmax": True},
    computed=computed(best=1),
    task=TASK,
    scalings=("yarn",),
    config={
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "moe_layer_freq": 1,
    },
    written={"topk_method": _method},
    checks={**CHECKS, "topk_method": _fits_groups, "hidden_size": _whole_heads},
    harmless=("ep_size", "output_router_logits"),
    defaults=NOT_IN_TRANSFORMERS,
    settings=SETTINGS,
    extents=EXTENTS,
    caveat=caveat,
)
