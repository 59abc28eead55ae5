"""The layer specification of `--transformer-impl torch`: Megatron's layers with our norms and attention."""

from __future__ import annotations

from functools import partial
from typing import Any

from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_decoder_block_spec,
    get_gpt_decoder_layer_specs,
    get_gpt_mtp_block_spec,
)
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.moe_layer import MoESubmodules
from megatron.core.transformer.multi_token_prediction import MultiTokenPredictionBlockSubmodules
from megatron.core.transformer.torch_norm import L2Norm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

from flagscale.checks.norms import ACROSS_HEADS
from megatron.flagscale.layers.activation import ActivatedLinear, GatedActivation, Unchanged, computes
from megatron.flagscale.layers.attention import Attention
from megatron.flagscale.layers.experts import BiasedExperts, GroupedExperts
from megatron.flagscale.layers.latent import LatentAttention
from megatron.flagscale.layers.latent_core import LatentCore
from megatron.flagscale.layers.norm import Norm
from megatron.flagscale.layers.norm_across_heads import NormedSelfAttention
from megatron.flagscale.layers.norm_position import place_norms, position_in
from megatron.flagscale.layers.self_attention import SelfAttention


def layer_spec(config: Any, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """Return the layers of a pipeline stage, as `GPTModelConfig.transformer_layer_spec` expects them."""
    transformer = config.transformer
    block: TransformerBlockSubmodules = get_gpt_decoder_block_spec(
        transformer,
        use_transformer_engine=False,
        normalization=transformer.normalization,
        qk_l2_norm=transformer.qk_l2_norm,
        vp_stage=vp_stage,
    )
    # All layers of a kind share one object.
    for layer in {id(spec): spec for spec in block.layer_specs}.values():
        _use_ours(layer.submodules, transformer)
        place_norms(layer, position_in(transformer))
    block.layer_norm = Norm
    return block


def prediction_heads_spec(
    config: Any, vp_stage: int | None = None
) -> MultiTokenPredictionBlockSubmodules | None:
    """Return the heads of multi-token prediction on a pipeline stage, None if it has none.

    Each head has a layer of the kind of the model's last one, on whatever stage that is.
    """
    transformer = config.transformer
    layer = get_gpt_decoder_layer_specs(
        transformer,
        use_transformer_engine=False,
        normalization=transformer.normalization,
        qk_l2_norm=transformer.qk_l2_norm,
        vp_stage=vp_stage,
    )[-1]
    _use_ours(layer.submodules, transformer)
    block = get_gpt_mtp_block_spec(transformer, layer, use_transformer_engine=False, vp_stage=vp_stage)
    # Not before: the engine rejects other layers than its own. All heads share this one.
    place_norms(layer, position_in(transformer))
    if block is not None:
        for head in block.layer_specs:
            head.submodules.enorm = head.submodules.hnorm = head.submodules.layer_norm = Norm
    return block


def _use_ours(layer: Any, transformer: Any) -> None:
    """Replace norms, attention, activations and experts in the submodules of a layer."""
    attention = layer.self_attention.submodules
    latent = transformer.multi_latent_attention
    ours = NormedSelfAttention if getattr(transformer, ACROSS_HEADS, False) else SelfAttention
    layer.self_attention.module = LatentAttention if latent else ours
    attention.core_attention = LatentCore if latent else Attention
    for owner in (layer, attention):
        for name in vars(owner):
            if name.endswith("layernorm") and getattr(owner, name) not in (None, IdentityOp, L2Norm):
                setattr(owner, name, Norm)
    mlp = layer.mlp.keywords["submodules"]
    # The engine names the setting after the package whose modules it was made for: with it, an MLP takes the
    # activation from the specification.
    transformer.use_te_activation_func = computes(transformer)
    if computes(transformer):
        _set_activations(mlp)
    if isinstance(mlp, MoESubmodules) and (transformer.moe_grouped_gemm or transformer.add_bias_linear):
        kind = GroupedExperts if transformer.moe_grouped_gemm else BiasedExperts
        mlp.experts = partial(kind, **mlp.experts.keywords)


def _set_activations(mlp: MLPSubmodules | MoESubmodules) -> None:
    """Make a layer's MLP, or its experts, compute activations as in activation.py."""
    if isinstance(mlp, MoESubmodules):
        # Between activation and second linear layer, separate experts multiply by the weights of the tokens.
        mlp.experts.keywords["submodules"].activation_func = GatedActivation
        mlp = mlp.shared_experts.keywords["submodules"]
    mlp.activation_func, mlp.linear_fc2 = Unchanged, ActivatedLinear
