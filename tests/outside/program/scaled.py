"""The model: a GPT model whose embeddings are multiplied by a number that it learns."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig


class ScaledBuilder(GPTModelBuilder):
    def build_model(self, pg_collection, pre_process=None, post_process=None, vp_stage=None):
        model = super().build_model(pg_collection, pre_process, post_process, vp_stage)
        if model.pre_process:
            model.embedding.scale = torch.nn.Parameter(torch.full((1,), 2.0))
            model.embedding.register_forward_hook(lambda module, _, output: output * module.scale)
        return model


@dataclass(kw_only=True)
class ScaledConfig(GPTModelConfig):
    builder: ClassVar[str] = f"{__name__}.ScaledBuilder"
