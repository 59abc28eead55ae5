"""Small LLaVA models of transformers with random weights, and the same models on Megatron's layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from flagscale.vision.arguments import usual_grids
from flagscale.vision.tiling import Tiling, Vision
from flagscale.vision.tower import TOWERS, Tower

VOCAB, IMAGE, VIDEO = 256, 250, 251
"""The vocabulary's size, and the ids of the placeholders."""
WIDTH, HEADS, GROUPS, LAYERS, FFN, HEAD_DIM = 64, 4, 2, 2, 96, 32
"""Of the language models; `HEAD_DIM` is that of Qwen3, which others compute from the width."""


def small_tower(kind: str, **sizes: Any) -> Tower:
    """Return a tower of this kind with 2 x 2 features of a tile (`kind`: "clip" or "siglip")."""
    return replace(TOWERS[kind], **{"side": 30, "layers": 3, "hidden": 64, "ffn": 80, "heads": 2, **sizes})


def small_vision(kind: str, tiled: bool, **sizes: Any) -> Vision:
    """Return a vision part with a small tower; with tiling, up to 6 x 6 tiles of which 9 are kept."""
    tower = small_tower(kind, **sizes)
    return Vision(tower, Tiling(usual_grids(tower.side)) if tiled else None)


@dataclass(frozen=True)
class LlavaModel:
    """A model by its vision part and its language model: "Llama", "Qwen2" or "Qwen3"."""

    vision: Vision
    language: str = "Qwen2"
    tied: bool = False

    def of_transformers(self, seed: int = 0) -> Any:
        """Return the model of transformers; norms and biases are random too, so that swapped ones show."""
        import transformers

        name = "LlavaOnevision" if self.vision.tiling else "Llava"
        config = getattr(transformers, f"{name}Config")(
            vision_config=self._vision_config(),
            text_config=self._text_config(),
            image_token_index=IMAGE,
            vision_feature_select_strategy="default" if self.vision.tower.has_class_token else "full",
            vision_feature_layer=-1,
            tie_word_embeddings=self.tied,
            **self._tiling_settings(),
        )
        torch.manual_seed(seed)
        model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                is_norm = "norm" in name and name.endswith("weight")
                parameter.normal_(1.0 if is_norm else 0.0, 0.1 if parameter.dim() > 1 else 0.2)
        return model

    def config(self, **settings: Any) -> Any:
        """Return the `LlavaConfig` of the model; `settings` are those of its `TransformerConfig`."""
        from megatron.core.transformer import TransformerConfig

        from megatron.flagscale.layers.spec import layer_spec
        from megatron.flagscale.vision.builder import LlavaConfig

        transformer = TransformerConfig(
            **{
                "num_layers": LAYERS,
                "hidden_size": WIDTH,
                "ffn_hidden_size": FFN,
                "num_attention_heads": HEADS,
                "num_query_groups": GROUPS,
                "kv_channels": HEAD_DIM if self.language == "Qwen3" else WIDTH // HEADS,
                "normalization": "RMSNorm",
                "layernorm_epsilon": 1e-6,
                "gated_linear_unit": True,
                "activation_func": torch.nn.functional.silu,
                "add_bias_linear": False,
                "add_qkv_bias": self.language == "Qwen2",
                "qk_layernorm": self.language == "Qwen3",
                "hidden_dropout": 0.0,
                "attention_dropout": 0.0,
                "bias_activation_fusion": False,
                "bias_dropout_fusion": False,
                "masked_softmax_fusion": False,
                "persist_layer_norm": False,
                "gradient_accumulation_fusion": False,
                "transformer_impl": "local",
                "hetereogenous_dist_checkpoint": True,
                **settings,
            }
        )
        return LlavaConfig(
            transformer=transformer,
            transformer_layer_spec=layer_spec,
            vocab_size=VOCAB,
            seq_length=4096,
            position_embedding_type="rope",
            share_embeddings_and_output_weights=self.tied,
            vision=self.vision,
            image_id=IMAGE,
            video_id=VIDEO if self.vision.tiling else None,
        )

    def _vision_config(self) -> Any:
        import transformers

        tower = self.vision.tower
        name = "CLIPVisionConfig" if tower.has_class_token else "SiglipVisionConfig"
        return getattr(transformers, name)(
            hidden_size=tower.hidden,
            intermediate_size=tower.ffn,
            num_hidden_layers=tower.layers,
            num_attention_heads=tower.heads,
            image_size=tower.side,
            patch_size=tower.patch_size,
            layer_norm_eps=tower.norm_eps,
            hidden_act=tower.activation,
            **({} if tower.has_class_token else {"vision_use_head": False}),
        )

    def _text_config(self) -> Any:
        import transformers

        return getattr(transformers, f"{self.language}Config")(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            intermediate_size=FFN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=GROUPS,
            head_dim=HEAD_DIM if self.language == "Qwen3" else WIDTH // HEADS,
            max_position_embeddings=4096,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=self.tied,
            pad_token_id=0,
        )

    def _tiling_settings(self) -> Mapping[str, Any]:
        tiling = self.vision.tiling
        if tiling is None:
            return {}
        grids = [[*grid] for grid in tiling.grids]
        ratio = f"anyres_max_{tiling.max_tiles}"
        return {"image_grid_pinpoints": grids, "vision_aspect_ratio": ratio, "video_token_index": VIDEO}


def load(gpt: torch.nn.Module, of_transformers: Mapping[str, torch.Tensor], model: LlavaModel) -> None:
    """Copy a state dict of transformers to this rank's chunk of the model."""
    with torch.no_grad():
        for _, parameter, own in matched(gpt, of_transformers, model):
            parameter.copy_(own)


def matched(
    gpt: torch.nn.Module, of_transformers: Mapping[str, torch.Tensor], model: LlavaModel
) -> Iterator[tuple[str, torch.nn.Parameter, torch.Tensor]]:
    """Yield the name of each weight of a chunk, the weight, and this rank's part of that of transformers.

    `of_transformers` may hold the gradients of the weights instead.
    """
    from megatron.flagscale.initialization import global_name

    for module_name, module in gpt.named_modules():
        for local_name, parameter in module.named_parameters(module_name, recurse=False):
            name = global_name(local_name, gpt)
            whole = _weight(name, of_transformers, model)
            yield name, parameter, _part(whole, parameter, getattr(module, "tp_group", None))


def _part(whole: torch.Tensor, parameter: torch.Tensor, group: Any) -> torch.Tensor:
    if not getattr(parameter, "tensor_model_parallel", False):
        return whole
    dim, stride = parameter.partition_dim, parameter.partition_stride
    parts = whole.unflatten(dim, (stride, group.size(), -1))
    return parts.select(dim + 1, group.rank()).flatten(dim, dim + 1)


_TEXT = "model.language_model."
_TOWER = {
    "patch_embedding": "embeddings.patch_embedding",
    "position_embedding": "embeddings.position_embedding",
    "class_embedding": "embeddings.class_embedding",
    "pre_layernorm": "pre_layrnorm",
}
_IN_LAYER = {
    "self_attention.linear_proj": "self_attn.out_proj",
    "input_layernorm": "layer_norm1",
    "pre_mlp_layernorm": "layer_norm2",
    "mlp.linear_fc1": "mlp.fc1",
    "mlp.linear_fc2": "mlp.fc2",
}
_IN_TEXT_LAYER = {
    "self_attention.linear_proj": "self_attn.o_proj",
    "self_attention.q_layernorm": "self_attn.q_norm",
    "self_attention.k_layernorm": "self_attn.k_norm",
    "input_layernorm": "input_layernorm",
    "pre_mlp_layernorm": "post_attention_layernorm",
    "mlp.linear_fc2": "mlp.down_proj",
}
_ELSEWHERE = {
    "embedding.word_embeddings.weight": f"{_TEXT}embed_tokens.weight",
    "output_layer.weight": "lm_head.weight",
    "decoder.final_layernorm.weight": f"{_TEXT}norm.weight",
    "pictures.newline": "model.image_newline",
}
_LAYER = re.compile(r"(?:pictures\.tower\.)?decoder\.layers\.(\d+)\.(.+)\.(\w+)")


def _weight(name: str, of_transformers: Mapping[str, torch.Tensor], model: LlavaModel) -> torch.Tensor:
    """Return the whole weight that has this name in Megatron's model."""
    if name in _ELSEWHERE:
        return of_transformers[_ELSEWHERE[name]]
    if name.startswith("pictures.projector."):
        module, what = name.removeprefix("pictures.projector.linear_fc").split(".")
        return of_transformers[f"model.multi_modal_projector.linear_{module}.{what}"]
    tower = "model.vision_tower."
    if any(key.startswith(f"{tower}vision_model.") for key in of_transformers):
        tower += "vision_model."
    found = _LAYER.fullmatch(name)
    if not found:
        module, _, what = name.removeprefix("pictures.tower.").partition(".")
        return of_transformers[f"{tower}{_TOWER[module]}{'.' if what else ''}{what}"]
    in_tower = name.startswith("pictures.")
    layer, module, what = found.groups()
    place = f"{tower}encoder.layers.{layer}." if in_tower else f"{_TEXT}layers.{layer}."
    if module == "self_attention.linear_qkv":
        groups = model.vision.tower.heads if in_tower else GROUPS
        parts = [of_transformers[f"{place}self_attn.{one}_proj.{what}"] for one in "qkv"]
        return torch.cat([part.unflatten(0, (groups, -1)) for part in parts], 1).flatten(0, 1)
    if module == "mlp.linear_fc1" and not in_tower:
        return torch.cat([of_transformers[f"{place}mlp.{one}_proj.{what}"] for one in ("gate", "up")])
    return of_transformers[f"{place}{(_IN_LAYER if in_tower else _IN_TEXT_LAYER)[module]}.{what}"]
