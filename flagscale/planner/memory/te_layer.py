"""What a layer of TransformerEngine keeps, by formula: such layers cannot run without CUDA.

From the code of Megatron-core 0.19.2 (`attention.py`, `multi_latent_attention.py`, `mlp.py`, `experts.py`,
`token_dispatcher.py`) and of TransformerEngine 2.11 (`layernorm_linear.py`, `backends.py`,
`context_parallel.py`, `grouped_linear.py`). Experts are assumed to be balanced.
"""

from __future__ import annotations

from collections.abc import Iterator

from flagscale.frozen import dataclass
from flagscale.planner.model_shape import ModelShape

Parts = dict[str, float]
"""Bytes by module, named as in the engine."""

_EXPERT_CHOICE = 9
"""Bytes per token and expert of the router: scores and probabilities in float, and a map of choices."""


_OUTPUT_TWICE = ("a2a", "allgather", "all_gather")


@dataclass(frozen=True)
class Setting:
    """What decides the size of a layer's tensors beside the shape of the model."""

    tokens: float
    """Of one micro-batch on one rank, before tensor parallelism divides anything."""
    sequence: int
    """Tokens of a whole sample."""
    tp: int = 1
    ep: int = 1
    expert_tp: int = 1
    cp: int = 1
    sequence_parallel: bool = False
    width: int = 2
    """Bytes of an activation."""
    narrow: float = 2
    """Bytes of an input that only a multiplication needs: 1 in fp8."""
    exchange: str = "p2p"
    stores_scores: bool = False
    fused_activation: bool = True
    capacity: float = 1.0
    """Tokens of an expert relative to a balanced share."""

    @property
    def rows(self) -> float:
        """Tokens of the residual stream and of the norms on one rank."""
        return self.tokens / self.tp if self.sequence_parallel else self.tokens

    @property
    def routed(self) -> float:
        """Tokens that the experts of one rank process for each expert that a token chooses."""
        return self.capacity * self.tokens * self.expert_tp / self.tp


def layer_parts(model: ModelShape, setting: Setting, is_moe: bool, recompute: tuple[str, ...] = ()) -> Parts:
    """Return the bytes that each module of one layer keeps for one micro-batch."""
    attention = _latent if model.attention == "mla" else _plain
    parts = {
        **dict(attention(model, setting)),
        **dict(_moe(model, setting) if is_moe else _mlp(model, setting)),
    }
    return _without(parts, recompute)


def _plain(model: ModelShape, setting: Setting) -> Iterator[tuple[str, float]]:
    width, tokens = setting.width, setting.tokens
    queries = tokens * model.heads * model.head_dim / setting.tp
    # With fewer groups than ranks, each rank gathers one whole group.
    keys = tokens * max(model.groups, setting.tp) * model.head_dim / setting.tp
    yield "input_layernorm", _norm_input(model, setting)
    yield "self_attention.linear_qkv", setting.rows * model.hidden * setting.narrow
    if model.qk_norm:
        # The inputs of both norms; their outputs are rotated, or are what attention takes.
        yield "self_attention.qk_layernorm", (queries + keys) * width
    # The three are views of one tensor, or become tensors of their own: if they are rotated or exchanged, and
    # the values with them, because attention takes only certain strides (`get_qkv_layout`).
    yield "self_attention.core_attention.qkv", (queries + 2 * keys) * width
    if model.output_gate:
        yield "self_attention.gate", 2 * queries * width
    yield from _core(model, setting, model.head_dim)


def _latent(model: ModelShape, setting: Setting) -> Iterator[tuple[str, float]]:
    width, rows = setting.width, setting.rows
    heads = setting.tokens * model.heads / setting.tp
    yield "input_layernorm", _norm_input(model, setting)
    yield "self_attention.linear_down_proj", rows * model.hidden * setting.narrow
    # Of both latents, the input of the norm, if there is one, and of the product behind it. The former is one
    # tensor with what becomes the rotated part of the keys.
    before = width if model.qk_norm else 0
    if model.q_lora:
        yield "self_attention.q_layernorm", rows * model.q_lora * (before + setting.narrow)
    yield (
        "self_attention.kv_layernorm",
        rows * (model.kv_lora * (before + setting.narrow) + model.rope_dim * before),
    )
    # All three are copied into tensors of their own (`contiguous`).
    head = 2 * (model.qk_nope_dim + model.rope_dim) + model.v_dim
    yield "self_attention.core_attention.qkv", heads * head * width
    yield from _core(model, setting, model.v_dim)


def _core(model: ModelShape, setting: Setting, value_dim: int) -> Iterator[tuple[str, float]]:
    """Yield what attention keeps beside queries, keys and values, and what follows it keeps."""
    heads, width = setting.tokens * model.heads / setting.tp, setting.width
    output = heads * value_dim
    if setting.stores_scores:
        # Weights in the precision of activations; with dropout, those after it and a mask.
        per_pair = 2 * width + 1 if model.attention_dropout else width
        yield "self_attention.core_attention", heads * setting.sequence * per_pair
    else:
        # A log-sum-exp per query in float. Some exchanges keep the output of attention before and after them.
        before = output * width if setting.cp > 1 and setting.exchange in _OUTPUT_TWICE else 0
        yield "self_attention.core_attention", heads * 4 + before
    is_shared = setting.narrow == width or setting.stores_scores
    yield "self_attention.linear_proj", output * (setting.narrow if is_shared else width + setting.narrow)
    if model.dropout:
        yield "self_attn_bda", setting.rows * model.hidden


def _mlp(model: ModelShape, setting: Setting) -> Iterator[tuple[str, float]]:
    yield "pre_mlp_layernorm", _norm_input(model, setting)
    yield "mlp.linear_fc1", setting.rows * model.hidden * setting.narrow
    yield "mlp.activation", _activation(model, setting) * setting.tokens * model.ffn / setting.tp
    yield "mlp.linear_fc2", setting.tokens * model.ffn / setting.tp * setting.narrow
    if model.dropout:
        yield "mlp_bda", setting.rows * model.hidden


def _moe(model: ModelShape, setting: Setting) -> Iterator[tuple[str, float]]:
    width = setting.width
    routed = setting.routed * model.topk
    yield "pre_mlp_layernorm", _norm_input(model, setting)
    # The router, the dispatcher and the shared expert take the norm's output.
    yield "mlp.input", setting.rows * model.hidden * width
    yield "mlp.router", setting.rows * model.experts * _EXPERT_CHOICE
    yield "mlp.experts.linear_fc1", routed * model.hidden * setting.narrow
    inner = routed * model.expert_ffn / setting.expert_tp
    # The activation multiplies each token by its probability, in float; unless that is one kernel, which only
    # gated activations have, it keeps what it multiplies.
    is_fused = model.gated and setting.fused_activation
    product = 0 if is_fused else inner * width
    yield "mlp.experts.activation", inner * _activation(model, setting) + product + routed * 4
    yield "mlp.experts.linear_fc2", inner * setting.narrow
    if model.shared_ffn:
        shared = setting.tokens * model.shared_ffn / setting.tp
        gated = setting.rows * model.hidden * width if model.shared_gate else 0
        yield "mlp.shared_experts", shared * (_activation(model, setting) + setting.narrow) + gated
    if model.dropout:
        yield "mlp_bda", setting.rows * model.hidden


def _norm_input(model: ModelShape, setting: Setting) -> float:
    # A mean and a deviation of each row in float; RMSNorm has the latter only.
    return setting.rows * (model.hidden * setting.width + (8 if model.norm_bias else 4))


def _activation(model: ModelShape, setting: Setting) -> float:
    """Return the bytes per element of the MLP's inner width that the activation keeps."""
    up = 2 if model.gated else 1
    # Unfused, a gated activation keeps the activated gate too.
    return (up + (model.gated and not setting.fused_activation)) * setting.width


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
