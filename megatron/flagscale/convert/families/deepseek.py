"""Tables that the DeepSeek families share: multi-latent attention, and experts that all tokens pass through.

Checked against transformers 5.19 (`models/deepseek_v2`, `models/deepseek_v3`) and Megatron-core 0.19.2
(`transformer/multi_latent_attention.py`, `transformer/moe/moe_utils.py`). Both turn the rotary part of a head
in pairs of neighbours, so no weight is permuted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from megatron.flagscale.convert.families.base import POSITIVE, SIZE, SIZE_OR_NULL, Row, Setting
from megatron.flagscale.convert.families.decoder import ARGUMENTS, FIRST, KEYS, LAST, layer
from megatron.flagscale.convert.families.joins import GATED, Gated
from megatron.flagscale.convert.model import Model


def has_experts(model: Model, layer: int) -> bool:
    return layer >= model.dense


def _is_dense(model: Model, layer: int) -> bool:
    return layer < model.dense


def _compresses_queries(model: Model, layer: int) -> bool:
    return model.settings["q_lora_rank"] is not None


def _projects_queries(model: Model, layer: int) -> bool:
    return model.settings["q_lora_rank"] is None


_ATTENTION = (
    layer("input_layernorm.weight", "input_layernorm.weight", "hidden"),
    layer(
        "self_attention.linear_q_proj.weight",
        "self_attn.q_proj.weight",
        "query_heads hidden",
        when=_projects_queries,
    ),
    layer(
        "self_attention.linear_q_down_proj.weight",
        "self_attn.q_a_proj.weight",
        "query_rank hidden",
        when=_compresses_queries,
    ),
    layer(
        "self_attention.q_layernorm.weight",
        "self_attn.q_a_layernorm.weight",
        "query_rank",
        also="self_attention.linear_q_up_proj.layer_norm_weight",
        when=_compresses_queries,
    ),
    layer(
        "self_attention.linear_q_up_proj.weight",
        "self_attn.q_b_proj.weight",
        "query_heads query_rank",
        when=_compresses_queries,
    ),
    layer(
        "self_attention.linear_kv_down_proj.weight",
        "self_attn.kv_a_proj_with_mqa.weight",
        "kv_rank+rotary hidden",
    ),
    layer(
        "self_attention.kv_layernorm.weight",
        "self_attn.kv_a_layernorm.weight",
        "kv_rank",
        also="self_attention.linear_kv_up_proj.layer_norm_weight",
    ),
    layer("self_attention.linear_kv_up_proj.weight", "self_attn.kv_b_proj.weight", "key+value_heads kv_rank"),
    layer("self_attention.linear_proj.weight", "self_attn.o_proj.weight", "hidden value_heads"),
)
_DENSE = (
    layer(
        "pre_mlp_layernorm.weight",
        "post_attention_layernorm.weight",
        "hidden",
        also="mlp.linear_fc1.layer_norm_weight",
    ),
    layer(
        "mlp.linear_fc1.weight",
        "mlp.gate_proj.weight mlp.up_proj.weight",
        "dense_gate+up hidden",
        Gated("dense_ffn"),
        when=_is_dense,
    ),
    layer("mlp.linear_fc2.weight", "mlp.down_proj.weight", "hidden dense_ffn", when=_is_dense),
)
_EXPERT = "mlp.experts.{expert}."
_EXPERTS = (
    layer("mlp.router.weight", "mlp.gate.weight", "experts hidden", when=has_experts),
    layer(
        "mlp.shared_experts.linear_fc1.weight",
        "mlp.shared_experts.gate_proj.weight mlp.shared_experts.up_proj.weight",
        "shared_gate+up hidden",
        Gated("shared_ffn"),
        when=has_experts,
    ),
    layer(
        "mlp.shared_experts.linear_fc2.weight",
        "mlp.shared_experts.down_proj.weight",
        "hidden shared_ffn",
        when=has_experts,
    ),
    layer(
        "mlp.experts.experts.linear_fc1.weight",
        f"{_EXPERT}gate_proj.weight {_EXPERT}up_proj.weight",
        "gate+up hidden",
        GATED,
        when=has_experts,
    ),
    layer(
        "mlp.experts.experts.linear_fc2.weight",
        f"{_EXPERT}down_proj.weight",
        "hidden ffn",
        when=has_experts,
    ),
)
LAYER = (*_ATTENTION, *_DENSE, *_EXPERTS)
ROWS = (*FIRST, *LAYER, *LAST)


def _of_depth(megatron: str, huggingface: str, shape: str) -> Row:
    names = (f"model.layers.{{layer}}.{huggingface}.weight",)
    return Row(f"mtp.layers.{{depth}}.{megatron}.weight", names, tuple(shape.split()))


def with_mtp(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Return the rows of a model, followed by those of its layers for multi-token prediction.

    Such a layer joins the embedding of the next token with the hidden state, and ends in a decoder layer and
    a norm. In Hugging Face's format it also holds a copy of the embedding and of the output.
    """

    def within(name: str) -> str:
        return name.replace("decoder.layers.{layer}.", "mtp.layers.{depth}.transformer_layer.")

    of_layers = [row for row in rows if "{layer}" in row.megatron]
    copied = {
        FIRST[-1].megatron: ("model.layers.{layer}.embed_tokens.weight",),
        LAST[-1].megatron: ("model.layers.{layer}.shared_head.head.weight",),
    }
    return (
        *(replace(row, copies=copied.get(row.megatron, ())) for row in rows),
        _of_depth("enorm", "enorm", "hidden"),
        _of_depth("hnorm", "hnorm", "hidden"),
        _of_depth("eh_proj", "eh_proj", "hidden both"),
        *(replace(row, megatron=within(row.megatron), also=within(row.also)) for row in of_layers),
        _of_depth("final_layernorm", "shared_head.norm", "hidden"),
    )


EXTENTS: Mapping[str, Callable[[Model], int]] = {
    "query_rank": lambda model: model.settings["q_lora_rank"] or 0,
    "kv_rank": lambda model: model.settings["kv_lora_rank"],
    "kv_rank+rotary": lambda model: model.settings["kv_lora_rank"] + model.settings["qk_pos_emb_head_dim"],
    "query_heads": lambda model: model.heads * _width(model),
    "key+value_heads": lambda model: (
        model.heads * (model.settings["qk_head_dim"] + model.settings["v_head_dim"])
    ),
    "value_heads": lambda model: model.heads * model.settings["v_head_dim"],
    "both": lambda model: 2 * model.hidden,
}

DEEPSEEK_KEYS = {
    **{field: key for field, key in KEYS.items() if field != "ffn"},
    "head_dim": "v_head_dim",
    "experts": "n_routed_experts",
    "topk": "num_experts_per_tok",
    "ffn": "moe_intermediate_size",
    "shared": "n_shared_experts",
    "dense": "first_k_dense_replace",
    "dense_ffn": "intermediate_size",
}
DEEPSEEK_ARGUMENTS = {**ARGUMENTS, "multi_latent_attention": True, "qk_layernorm": True}
TASK = {"moe_router_dtype": "fp32"}
"""transformers and vLLM compute the router in fp32 whatever the model's precision."""
NOT_IN_TRANSFORMERS = {"aux_loss_alpha": 0.0, "seq_aux": True, "head_dim": None, "qk_head_dim": None}
"""The values of missing keys that the configuration classes lack, or that they compute from others."""

SETTINGS = (
    Setting("q_lora_rank", "q_lora_rank", kind=SIZE_OR_NULL),
    Setting("kv_lora_rank", "kv_lora_rank", kind=SIZE),
    Setting("qk_nope_head_dim", "qk_head_dim", kind=SIZE),
    Setting("qk_rope_head_dim", "qk_pos_emb_head_dim", kind=SIZE),
    Setting("v_head_dim", "v_head_dim", kind=SIZE),
    Setting("n_group", "moe_router_num_groups", kind=SIZE, unset=1),
    Setting("topk_group", "moe_router_group_topk", kind=SIZE, unset=1),
    Setting("routed_scaling_factor", "moe_router_topk_scaling_factor", kind=POSITIVE, unset=1.0),
    Setting("aux_loss_alpha", "moe_aux_loss_coeff"),
    Setting(
        "seq_aux", "moe_router_load_balancing_type", {True: "seq_aux_loss", False: "aux_loss"}, unset=True
    ),
)
"""The loss that balances the experts is only in DeepSeek's own code, where it is Megatron's, per sequence
(`seq_aux`) or per batch; transformers has none."""


def _width(model: Model) -> int:
    """Return the width of a head's query: the part without positions and the rotary part."""
    width: int = model.settings["qk_head_dim"] + model.settings["qk_pos_emb_head_dim"]
    return width


def computed(best: int) -> dict[str, Callable[[Model], tuple[Any, ...]]]:
    """Return the arguments by which Megatron chooses the groups of experts that transformers chooses.

    transformers compares the sums of the `best` scores of each group; Megatron those of the topk / topk_group
    best, unless an argument of ours says otherwise (`megatron.flagscale.group_routing`).
    """

    def group_best(model: Model) -> tuple[int | None, ...]:
        groups, chosen = (model.settings[f"moe_router_{name}"] for name in ("num_groups", "group_topk"))
        return (None, best) if chosen == groups or model.topk // chosen == best else (best,)

    return {"moe_router_group_best": group_best}


def _groups_fit(value: Any, model: Model) -> str:
    groups, chosen = (model.settings[f"moe_router_{name}"] for name in ("num_groups", "group_topk"))
    if model.experts % groups:
        return f"{model.experts} experts cannot be divided into {groups} groups (`n_group`)"
    if chosen > groups:
        return f"there are {groups} groups (`n_group`)"
    if model.topk > chosen * (model.experts // groups):
        return f"{chosen} groups hold fewer experts than `num_experts_per_tok`: {model.topk}"
    return ""


def _all_heads(value: Any, model: Model) -> str:
    return "" if model.groups == model.heads else f"it must equal `num_attention_heads`: {model.heads}"


def _rotary(value: Any, model: Model) -> str:
    width = model.settings["qk_pos_emb_head_dim"]
    return "" if value in (None, width) else f"it must equal `qk_rope_head_dim`: {width}"


def _both_parts(value: Any, model: Model) -> str:
    what = "it must equal `qk_nope_head_dim` and `qk_rope_head_dim` together"
    return "" if value in (None, _width(model)) else f"{what}: {_width(model)}"


def _some_experts(value: Any, model: Model) -> str:
    return "" if model.dense < model.layers else f"none of the {model.layers} layers would have experts"


CHECKS: Mapping[str, Callable[[Any, Model], str]] = {
    "num_key_value_heads": _all_heads,
    "head_dim": _rotary,
    "qk_head_dim": _both_parts,
    "first_k_dense_replace": _some_experts,
    "topk_group": _groups_fit,
}


def caveat(model: Model) -> str:
    """Return a note if the norms within the attention differ between the libraries."""
    if model.norm_eps == _LATENT_EPS:
        return ""
    what = f"the norms of compressed queries, keys and values use rms_norm_eps {model.norm_eps:g}"
    return f"{what} in Megatron and vLLM, but {_LATENT_EPS:g} in transformers, whose results differ slightly"


_LATENT_EPS = 1e-6
"""`DeepseekV2RMSNorm(rank)` and `DeepseekV3RMSNorm(rank)` in transformers: not `rms_norm_eps`."""
