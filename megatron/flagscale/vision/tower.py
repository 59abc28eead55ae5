"""The vision tower on Megatron's layers: from tiles of pixels to features."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from megatron.core.activations import quick_gelu
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.training.models.gpt import GPTModelConfig

from flagscale.vision.tower import Tower
from megatron.flagscale.layers.norm import Norm
from megatron.flagscale.layers.spec import layer_spec

_ACTIVATIONS = {
    "gelu_pytorch_tanh": functools.partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
}
_SHARED = (
    "tensor_model_parallel_size",
    "params_dtype",
    "bf16",
    "fp16",
    "use_cpu_initialization",
    "perform_initialization",
    "init_method",
    "output_layer_init_method",
    "embedding_init_method",
    "gradient_accumulation_fusion",
    "bias_dropout_fusion",
    "deterministic_mode",
    "hetereogenous_dist_checkpoint",
    "recompute_granularity",
    "recompute_method",
    "recompute_num_layers",
)
"""Settings of the language model that hold for the vision part as well; all others keep their defaults."""
_RECOMPUTED = ("core_attn", "layernorm")
"""The parts of a tower's layer that are recomputed if `recompute_modules` names them.

The engine cannot recompute an MLP that has biases: they become results of the recomputed function, whose
gradient it then computes without end (megatron-core 0.19.2, `TransformerLayer._forward_mlp`).
"""


def tower_config(language: TransformerConfig, tower: Tower) -> TransformerConfig:
    """Return the configuration of a tower beside this language model.

    Its sequences are tiles: they are split neither by sequence nor context parallelism, nor over a pipeline.
    """
    return TransformerConfig(
        **{name: getattr(language, name) for name in _SHARED},
        recompute_modules=[name for name in language.recompute_modules if name in _RECOMPUTED],
        transformer_impl="local",
        num_layers=tower.layers,
        hidden_size=tower.hidden,
        ffn_hidden_size=tower.ffn,
        num_attention_heads=tower.heads,
        normalization="LayerNorm",
        layernorm_epsilon=tower.norm_eps,
        activation_func=_ACTIVATIONS[tower.activation],
        hidden_dropout=0.0,
        attention_dropout=0.0,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
    )


class VisionTower(MegatronModule):
    """Tiles uint8 `[n, 3, side, side]` to features `[n, features, hidden]`, not normed.

    Equal to `CLIPVisionModel` or `SiglipVisionModel` of transformers up to the last of `tower.layers`.
    """

    def __init__(self, config: TransformerConfig, tower: Tower, groups: ProcessGroupCollection) -> None:
        super().__init__(config=config)
        self.tower = tower
        dtype = config.params_dtype
        self.patch_embedding = torch.nn.Conv2d(
            *(3, tower.hidden, tower.patch_size, tower.patch_size),
            bias=not tower.has_class_token,
            dtype=dtype,
        )
        positions = tower.features + tower.has_class_token
        self.position_embedding = torch.nn.Embedding(positions, tower.hidden, dtype=dtype)
        drawn = [self.patch_embedding.weight, self.position_embedding.weight]
        if tower.has_class_token:
            self.class_embedding = torch.nn.Parameter(torch.zeros(tower.hidden, dtype=dtype))
            self.pre_layernorm = Norm(config, tower.hidden, tower.norm_eps)
            drawn.append(self.class_embedding)
        else:
            torch.nn.init.zeros_(self.patch_embedding.bias)
        self.decoder = TransformerBlock(config, _layers(config), post_process=False, pg_collection=groups)
        if config.perform_initialization:
            for weight in drawn:
                config.init_method(weight)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        # Each weight is used in a call of the module that owns it: the trainer may gather it just before.
        pixels = _normalized(tiles, self.tower).to(self.config.params_dtype)
        hidden = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        if self.tower.has_class_token:
            hidden = torch.cat([self.class_embedding.expand(len(tiles), 1, -1), hidden], 1)
        hidden = hidden + self.position_embedding(torch.arange(hidden.size(1), device=tiles.device))
        if self.tower.has_class_token:
            hidden = self.pre_layernorm(hidden)
        hidden = self.decoder(hidden.transpose(0, 1).contiguous(), None).transpose(0, 1)
        return hidden[:, 1:] if self.tower.has_class_token else hidden


def _layers(config: TransformerConfig) -> TransformerBlockSubmodules:
    """Return the layers of `--transformer-impl torch`, whichever the language model has, without a mask."""
    block = layer_spec(GPTModelConfig(transformer=config))
    for layer in block.layer_specs:
        layer.submodules.self_attention.params["attn_mask_type"] = AttnMaskType.no_mask
    return block


def _normalized(tiles: torch.Tensor, tower: Tower) -> torch.Tensor:
    mean, std = (torch.tensor(of, device=tiles.device)[:, None, None] for of in (tower.mean, tower.std))
    return (tiles.float() / 255 - mean) / std
