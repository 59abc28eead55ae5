"""A GPT model with pictures, built through the engine's own seam for models."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig

from flagscale.vision.tiling import Vision
from megatron.flagscale.vision.pictures import PictureEmbedder, attach


@dataclass(kw_only=True)
class LlavaConfig(GPTModelConfig):
    """A GPT model, its vision part, and the ids of the tokens that stand for a picture and for a video.

    `gpt_config_from_args(args, model_config_cls=LlavaConfig)` makes one whose own fields are still to be set.
    """

    builder: ClassVar[str] = f"{__name__}.LlavaBuilder"
    scatter_embedding_sequence_parallel: bool = False
    """Embeddings are scattered once they hold the pictures."""
    vision: Vision | None = None
    image_id: int | None = None
    video_id: int | None = None
    """None: the tokenizer has no such token, and no sample a video."""


class LlavaBuilder(GPTModelBuilder):
    """Builds Megatron's `GPTModel`; on the stage with the embedding, it has a child `pictures`."""

    def build_model(
        self,
        pg_collection: ProcessGroupCollection,
        pre_process: bool | None = None,
        post_process: bool | None = None,
        vp_stage: int | None = None,
    ) -> GPTModel:
        """Build one chunk of the model."""
        gpt = super().build_model(pg_collection, pre_process, post_process, vp_stage)
        if gpt.pre_process:
            config = self._model_config
            pictures = PictureEmbedder(
                config.transformer, config.vision, _tensor_parallel_only(pg_collection)
            )
            attach(gpt, pictures, [one for one in (config.image_id, config.video_id) if one is not None])
        return gpt


def _tensor_parallel_only(groups: ProcessGroupCollection) -> ProcessGroupCollection:
    """Return the process groups, with a pipeline and a context parallel group of this rank alone."""
    own = copy.copy(groups)
    # Other ranks take no part in making it.
    own.pp = own.cp = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    return own
