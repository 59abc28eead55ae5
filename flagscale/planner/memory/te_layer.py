"""The bytes that a layer of TransformerEngine keeps, by formula: such layers cannot run without CUDA.

From the code of Megatron-core 0.19.2 (`attention.py`, `multi_latent_attention.py`, `mlp.py`, `experts.py`,
`token_dispatcher.py`) and of TransformerEngine 2.11 (`layernorm_linear.py`, `backends.py`,
`context_parallel.py`, `grouped_linear.py`). Experts are assumed to be balanced.
"""

from __future__ import annotations

from collections.abc import Iterator

from flagscale.planner.model_shape import ModelShape
from flagscale.planner.sharding import Sharding

Parts = dict[str, float]
"""Bytes by module, named as in the engine."""

_EXPERT_CHOICE = 9
"""Bytes per token and expert of the router: scores and probabilities in float, and a map of choices."""

_OUTPUT_TWICE = ("a2a", "all_gather")


def layer_parts(
    model: ModelShape, sharding: Sharding, is_moe: bool, recompute: tuple[str, ...] = ()
) -> Parts:
    """Return the bytes that each module of one layer keeps for one micro-batch."""
    attention = _latent if model.attention == "mla" else _plain
    parts = {
        **dict(attention(model, sharding)),
        **dict(_moe(model, sharding) if is_moe else _mlp(model, sharding)),
    }
    return _without(parts, recompute)


def _plain(model: ModelShape, sharding: Sharding) -> Iterator[tuple[str, float]]:
    width, tokens = sharding.width, sharding.tokens
    queries = tokens * model.heads * model.head_dim / sharding.tp
    # With fewer groups than ranks, each rank gathers one whole group.
    keys = tokens * max(model.groups, sharding.tp) * model.head_dim / sharding.tp
    yield "input_layernorm", _norm_input(model, sharding)
    yield "self_attention.linear_qkv", sharding.own_tokens * model.hidden * sharding.narrow
    if model.qk_norm:
        # The inputs of both norms; their outputs are rotated, or are what attention takes.
        yield "self_attention.qk_layernorm", (queries + keys) * width
    # The three are views of one tensor, or become tensors of their own: if they are rotated or exchanged, and
    # the values with them, because attention takes only certain strides (`get_qkv_layout`).
    yield "self_attention.core_attention.qkv", (queries + 2 * keys) * width
    if model.output_gate:
        yield "self_attention.gate", 2 * queries * width
    yield from _core(model, sharding, model.head_dim)


def _latent(model: ModelShape, sharding: Sharding) -> Iterator[tuple[str, float]]:
    width, rows = sharding.width, sharding.own_tokens
    heads = sharding.tokens * model.heads / sharding.tp
    yield "input_layernorm", _norm_input(model, sharding)
    yield "self_attention.linear_down_proj", rows * model.hidden * sharding.narrow
    # Of both latents, the input of the norm, if there is one, and of the product behind it. The former is one
    # tensor with what becomes the rotated part of the keys.
    before = width if model.qk_norm else 0
    if model.q_lora:
        yield "self_attention.q_layernorm", rows * model.q_lora * (before + sharding.narrow)
    yield (
        "self_attention.kv_layernorm",
        rows * (model.kv_lora * (before + sharding.narrow) + model.rope_dim * before),
    )
    # All three are copied into tensors of their own (`contiguous`).
    head = 2 * (model.qk_nope_dim + model.rope_dim) + model.v_dim
    yield "self_attention.core_attention.qkv", heads * head * width
    yield from _core(model, sharding, model.v_dim)


def _core(model: ModelShape, sharding: Sharding, value_dim: int) -> Iterator[tuple[str, float]]:
    """Yield what attention keeps beside queries, keys and values, and what follows it keeps."""
    heads, width = sharding.tokens * model.heads / sharding.tp, sharding.width
    output = heads * value_dim
    if sharding.stores_scores:
        # Weights in the precision of activations; with dropout, those after it and a mask.
        per_pair = 2 * width + 1 if model.attention_dropout else width
        yield "self_attention.core_attention", heads * sharding.sequence * per_pair
    else:
        # A log-sum-exp per query in float. Some exchanges keep the output of attention before and after them.
        before = output * width if sharding.cp > 1 and sharding.exchange in _OUTPUT_TWICE else 0
        yield "self_attention.core_attention", heads * 4 + before
    is_shared = sharding.narrow == width or sharding.stores_scores
    yield "self_attention.linear_proj", output * (sharding.narrow if is_shared else width + sharding.narrow)
    if model.dropout:
        yield "self_attn_bda", sharding.own_tokens * model.hidden


def _mlp(model: ModelShape, sharding: Sharding) -> Iterator[tuple[str, float]]:
    yield "pre_mlp_layernorm", _norm_input(model, sharding)
    yield "mlp.linear_fc1", sharding.own_tokens * model.hidden * sharding.narrow
    yield "mlp.activation", _activation(model, sharding) * sharding.tokens * model.ffn / sharding.tp
    yield "mlp.linear_fc2", sharding.tokens * model.ffn / sharding.tp * sharding.narrow
    if model.dropout:
        yield "mlp_bda", sharding.own_tokens * model.hidden


def _moe(model: ModelShape, sharding: Sharding) -> Iterator[tuple[str, float]]:
    width = sharding.width
    routed = sharding.routed * model.topk
    yield "pre_mlp_layernorm", _norm_input(model, sharding)
    # The router, the dispatcher and the shared expert take the norm's output.
    yield "mlp.input", sharding.own_tokens * model.hidden * width
    yield "mlp.router", sharding.own_tokens * model.experts * _EXPERT_CHOICE
    yield "mlp.experts.linear_fc1", routed * model.hidden * sharding.narrow
    inner = routed * model.expert_ffn / sharding.expert_tp
    # The activation multiplies each token by its probability, in float; unless that is one kernel, which only
    # gated activations have, it keeps what it multiplies.
    is_fused = model.gated and sharding.fused_activation
    product = 0 if is_fused else inner * width
    yield "mlp.experts.activation", inner * _activation(model, sharding) + product + routed * 4
    yield "mlp.experts.linear_fc2", inner * sharding.narrow
    if model.shared_ffn:
        shared = sharding.tokens * model.shared_ffn / sharding.tp
        gated = sharding.own_tokens * model.hidden * width if model.shared_gate else 0
        yield "mlp.shared_experts", shared * (_activation(model, sharding) + sharding.narrow) + gated
    if model.dropout:
        yield "mlp_bda", sharding.own_tokens * model.hidden


def _norm_input(model: ModelShape, sharding: Sharding) -> float:
    # A mean and a deviation of each row in float; RMSNorm has the latter only.
    return sharding.own_tokens * (model.hidden * sharding.width + (8 if model.norm_bias else 4))


def _activation(model: ModelShape, sharding: Sharding) -> float:
    """Return the bytes per element of the MLP's inner width that the activation keeps."""
    up = 2 if model.gated else 1
    # Unfused, a gated activation keeps the activated gate too.
    return (up + (model.gated and not sharding.fused_activation)) * sharding.width


def _without(parts: Parts, recompute: tuple[str, ...]) -> Parts:
    """Return the parts that are left if some modules are computed again; each keeps its input."""
    dropped = {module for name in recompute for module in _DROPPED.get(name, ())}
    if "mlp" in recompute and "mlp.linear_fc1" in parts:
        # The norm is a part of this module.
        dropped |= {"mlp.linear_fc1", "mlp.activation", "mlp.linear_fc2"}
    return {module: nbytes for module, nbytes in parts.items() if module not in dropped}


_DROPPED = {
    "core_attn": ("self_attention.core_attention",),
    # The norms that are not a part of the linear module behind them.
    "layernorm": ("self_attention.linear_down_proj", "mlp.input"),
    "mla_up_proj": ("self_attention.core_attention.qkv",),
    "moe_act": ("mlp.experts.linear_fc2",),
    "shared_experts": ("mlp.shared_experts",),
    "moe": (
        "mlp.router",
        "mlp.experts.linear_fc1",
        "mlp.experts.activation",
        "mlp.experts.linear_fc2",
        "mlp.shared_experts",
    ),
}
"""By recomputed module: what it does not keep."""
