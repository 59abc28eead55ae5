"""The layer specification of `--transformer-impl torch`: Megatron's layers with our norms and attention."""

from __future__ import annotations

from functools import partial
from typing import Any

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.moe_layer import MoESubmodules
from megatron.core.transformer.torch_norm import L2Norm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

from megatron.flagscale.layers.activation import ActivatedLinear, GatedActivation, Unchanged, computes
from megatron.flagscale.layers.attention import Attention
from megatron.flagscale.layers.experts import GroupedExperts
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
    # The engine names the setting after the package whose modules it was made for: with it, an MLP takes the
    # activation from the specification.
    transformer.use_te_activation_func = computes(transformer)
    # All layers of a kind share one object.
    for layer in {id(spec): spec.submodules for spec in block.layer_specs}.values():
        attention = layer.self_attention.submodules
        attention.core_attention = Attention
        for owner in (layer, attention):
            for name in vars(owner):
                if name.endswith("layernorm") and getattr(owner, name) not in (None, IdentityOp, L2Norm):
                    setattr(owner, name, Norm)
        mlp = layer.mlp.keywords["submodules"]
        if computes(transformer):
            _set_activations(mlp)
        if transformer.moe_grouped_gemm and isinstance(mlp, MoESubmodules):
            mlp.experts = partial(GroupedExperts, **mlp.experts.keywords)
    block.layer_norm = Norm
    return block


def _set_activations(mlp: MLPSubmodules | MoESubmodules) -> None:
    """Make a layer's MLP, or its experts, compute activations as in activation.py."""
    if isinstance(mlp, MoESubmodules):
        # Between activation and second linear layer, separate experts multiply by the weights of the tokens.
        mlp.experts.keywords["submodules"].activation_func = GatedActivation
        mlp = mlp.shared_experts.keywords["submodules"]
    mlp.activation_func, mlp.linear_fc2 = Unchanged, ActivatedLinear
