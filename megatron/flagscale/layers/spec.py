"""The layer specification of `--transformer-impl torch`: Megatron's layers with our norms and attention."""

from __future__ import annotations

from functools import partial
from typing import Any

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.moe.moe_layer import MoESubmodules
from megatron.core.transformer.torch_norm import L2Norm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

from megatron.flagscale.layers.attention import Attention
from megatron.flagscale.layers.experts import GroupedExperts
from megatron.flagscale.layers.latent import LatentAttention
from megatron.flagscale.layers.latent_core import LatentCore
from megatron.flagscale.layers.norm import Norm


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
    for layer in {id(spec): spec.submodules for spec in block.layer_specs}.values():
        attention = layer.self_attention.submodules
        attention.core_attention = Attention
        if transformer.multi_latent_attention:
            layer.self_attention.module, attention.core_attention = LatentAttention, LatentCore
        for owner in (layer, attention):
            for name in vars(owner):
                if name.endswith("layernorm") and getattr(owner, name) not in (None, IdentityOp, L2Norm):
                    setattr(owner, name, Norm)
        experts = layer.mlp.keywords["submodules"]
        if transformer.moe_grouped_gemm and isinstance(experts, MoESubmodules):
            experts.experts = partial(GroupedExperts, **experts.experts.keywords)
    block.layer_norm = Norm
    return block
