"""The shape of a model, as far as its memory and its time depend on it, and how the arguments give it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.checks.experts import expert_layers
from flagscale.checks.gemma import ATTENTION_CAP, LOGIT_CAP
from flagscale.checks.norms import ACROSS_HEADS, POSITION, PRE
from flagscale.frozen import dataclass


@dataclass(frozen=True)
class ModelShape:
    """A decoder of dense and expert layers. Sizes are those of the whole model, in elements."""

    hidden: int
    heads: int
    groups: int
    """Groups of keys and values; `heads` if each head has its own."""
    head_dim: int
    """Elements per head (`kv_channels`); latent attention has the sizes below instead."""
    ffn: int
    vocabulary: int
    """Rows of the embedding before padding."""
    experts_in: tuple[bool, ...]
    """For each layer, in order: whether its MLP has experts."""
    attention: str = "mha"
    """mha, gqa or mla."""
    q_lora: int = 0
    """0: queries are projected at once."""
    kv_lora: int = 0
    qk_nope_dim: int = 0
    """Elements of a query's and a key's head without positions (`qk_head_dim`)."""
    rope_dim: int = 0
    v_dim: int = 0
    experts: int = 0
    topk: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0
    """Width of the shared expert; 0: none."""
    prediction_heads: int = 0
    gated: bool = False
    """SwiGLU and its like: two projections up."""
    norm_bias: bool = False
    """LayerNorm rather than RMSNorm."""
    linear_bias: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    """Of each head by itself."""
    qk_norm_across_heads: bool = False
    norm_position: str = PRE
    """Where layers have norms, one of `flagscale.checks.norms.POSITIONS`."""
    tied: bool = False
    """Embedding and output share their weights."""
    learned_positions: int = 0
    """Rows of an embedding of positions; 0: rotary positions or none."""
    dropout: bool = False
    """Behind attention, behind the MLP, and behind the embedding."""
    attention_dropout: bool = False
    """Of the weights of attention."""
    output_gate: bool = False
    """Attention's output is multiplied by a gate, one more projection as wide as the queries."""
    shared_gate: bool = False
    """The shared expert's output is multiplied by a gate."""
    repeated_head: bool = False
    """All prediction heads are one, applied several times."""
    rotates: bool = True
    """Queries and keys are rotated by their positions."""
    caps_scores: bool = False
    """Attention scores have a soft cap, and are computed in plain operations."""
    caps_logits: bool = False
    """Output logits have a soft cap."""
    router: tuple[str, ...] = ()
    """Properties of routers: an auxiliary loss, `sigmoid`, `expert_bias`, `router_fp32`; see
    `layer_memory.OPTIONS`."""

    @property
    def layers(self) -> int:
        return len(self.experts_in)


def shape_of(values: Mapping[str, Any], vocabulary: int) -> ModelShape:
    """Return the shape that the engine builds from its checked arguments (by dest).

    Source of the defaults: megatron/training/arguments.py, `validate_args` (megatron-core 0.19.2).
    """
    hidden, heads = int(values["hidden_size"]), int(values["num_attention_heads"])
    groups = int(values["num_query_groups"]) if values.get("group_query_attention") else heads
    ffn = int(values.get("ffn_hidden_size") or _default_ffn(hidden, bool(values.get("swiglu"))))
    is_latent = bool(values.get("multi_latent_attention"))
    latent = values if is_latent else {}
    experts = int(values.get("num_experts") or 0)
    mixture = values if experts else {}
    # The engine's older name of rotary positions overrides the other argument.
    is_rotary = bool(values.get("use_rotary_position_embeddings"))
    positions = "rope" if is_rotary else values.get("position_embedding_type")
    has_table = positions == "learned_absolute"
    return ModelShape(
        hidden=hidden,
        heads=heads,
        groups=groups,
        head_dim=int(values.get("kv_channels") or hidden // heads),
        ffn=ffn,
        vocabulary=vocabulary,
        experts_in=expert_layers(values),
        attention="mla" if is_latent else "mha" if groups == heads else "gqa",
        q_lora=int(latent.get("q_lora_rank") or 0),
        kv_lora=int(latent.get("kv_lora_rank") or 0),
        qk_nope_dim=int(latent.get("qk_head_dim") or 0),
        rope_dim=int(latent.get("qk_pos_emb_head_dim") or 0),
        v_dim=int(latent.get("v_head_dim") or 0),
        experts=experts,
        topk=int(mixture.get("moe_router_topk") or 0),
        expert_ffn=int(mixture.get("moe_ffn_hidden_size") or (ffn if experts else 0)),
        shared_ffn=int(mixture.get("moe_shared_expert_intermediate_size") or 0),
        prediction_heads=int(values.get("mtp_num_layers") or 0),
        gated=bool(values.get("swiglu") or values.get("quick_geglu")),
        norm_bias=values.get("normalization") != "RMSNorm",
        linear_bias=bool(values.get("add_bias_linear")),
        qkv_bias=bool(values.get("add_bias_linear") or values.get("add_qkv_bias")),
        qk_norm=bool(values.get("qk_layernorm")),
        qk_norm_across_heads=bool(values.get(ACROSS_HEADS)),
        norm_position=str(values.get(POSITION) or PRE),
        tied=not values.get("untie_embeddings_and_output_weights"),
        learned_positions=int(values.get("max_position_embeddings") or 0) if has_table else 0,
        dropout=(values.get("hidden_dropout") or 0) > 0,
        attention_dropout=(values.get("attention_dropout") or 0) > 0,
        output_gate=bool(values.get("attention_output_gate")),
        shared_gate=bool(mixture.get("moe_shared_expert_gate")),
        repeated_head=bool(values.get("mtp_use_repeated_layer")),
        rotates=is_latent or positions not in ("learned_absolute", "none"),
        caps_scores=values.get(ATTENTION_CAP) is not None,
        caps_logits=values.get(LOGIT_CAP) is not None,
        router=tuple(_router(mixture)),
    )


_LOSSES = ("aux_loss", "seq_aux_loss", "global_aux_loss")


def _router(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is special about a router; a loss with a coefficient of 0 is not computed."""
    balance, weight = values.get("moe_router_load_balancing_type"), values.get("moe_aux_loss_coeff")
    kinds = balance if isinstance(balance, list | tuple) else [balance]
    weights = weight if isinstance(weight, list | tuple) else [weight] * len(kinds)
    for kind, factor in zip(kinds, weights, strict=False):
        if kind in _LOSSES and factor:
            yield str(kind)
    if values.get("moe_router_score_function") == "sigmoid":
        yield "sigmoid"
        if values.get("moe_router_enable_expert_bias"):
            yield "expert_bias"
    if values.get("moe_router_dtype") == "fp32":
        yield "router_fp32"


def _default_ffn(hidden: int, is_gated: bool) -> int:
    return int(4 * hidden * 2 / 3 / 64) * 64 if is_gated else 4 * hidden
