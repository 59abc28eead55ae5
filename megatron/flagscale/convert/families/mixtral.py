"""Mixtral: a Llama with a mixture of experts in place of the MLP."""

from __future__ import annotations

from megatron.flagscale.convert.families.base import Setting
from megatron.flagscale.convert.families.decoder import (
    ATTENTION,
    FIRST,
    KEYS,
    LAST,
    layer,
    llama_like,
)
from megatron.flagscale.convert.families.joins import GATED

_EXPERT = "block_sparse_moe.experts.{expert}."
_EXPERTS = (
    layer(
        "mlp.linear_fc1.layer_norm_weight",
        "post_attention_layernorm.weight",
        "hidden",
        also="pre_mlp_layernorm.weight",
    ),
    layer("mlp.router.weight", "block_sparse_moe.gate.weight", "experts hidden"),
    layer(
        "mlp.experts.experts.linear_fc1.weight",
        f"{_EXPERT}w1.weight {_EXPERT}w3.weight",
        "gate+up hidden",
        GATED,
    ),
    layer("mlp.experts.experts.linear_fc2.weight", f"{_EXPERT}w2.weight", "hidden ffn"),
)


BALANCING = Setting("router_aux_loss_coef", "moe_aux_loss_coeff")
"""The coefficient of the loss that balances the experts.

The same number weighs about layers / topk times as much in Megatron. Both multiply it by
`experts * sum(fraction of tokens * mean probability)`. Megatron (`switch_load_balancing_loss_func`) adds this
for every layer, with fractions that sum to one. transformers (`load_balancing_loss_func`) adds it once, for
all layers together, with fractions that sum to topk, and only if `output_router_logits` is true.
"""


MIXTRAL = llama_like(
    name="mixtral",
    architecture="MixtralForCausalLM",
    model_type="mixtral",
    rows=(*FIRST, *ATTENTION, *_EXPERTS, *LAST),
    keys={
        **KEYS,
        "experts": "num_local_experts",
        "topk": "num_experts_per_tok",
        "window": "sliding_window",
    },
    config={"hidden_act": "silu"},
    written={"output_router_logits": False},
    settings=(BALANCING,),
    harmless=("output_router_logits",),
)
