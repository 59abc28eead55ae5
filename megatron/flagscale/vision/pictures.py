"""Pictures and videos in a GPT model: their embeddings take the places of their placeholders."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import scatter_to_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from flagscale.vision.tiling import Vision
from megatron.flagscale.layers.context import local_chunks
from megatron.flagscale.vision.arrange import arranged
from megatron.flagscale.vision.media import Media
from megatron.flagscale.vision.projector import Projector
from megatron.flagscale.vision.tower import VisionTower, tower_config

_POSITIONAL = ("input_ids", "position_ids")
"""The first parameters of a GPT model's forward pass, which are those of its embedding layer."""


class PictureEmbedder(MegatronModule):
    """Everything between the pictures of a micro-batch and their embeddings: tower, projector, newline.

    `language` configures the language model. `groups` are its process groups, but with a pipeline and a
    context parallel group of one rank, because the vision part is split by tensor parallelism only.
    """

    def __init__(self, language: TransformerConfig, vision: Vision, groups: ProcessGroupCollection) -> None:
        config = tower_config(language, vision.tower)
        super().__init__(config=config)
        self.vision = vision
        self.tower = VisionTower(config, vision.tower, groups)
        self.projector = Projector(config, language.hidden_size, groups.tp)
        self.newline = None
        if vision.tiling:
            newline = torch.zeros(language.hidden_size, dtype=config.params_dtype)
            self.newline = torch.nn.Parameter(newline)
            if config.perform_initialization:
                config.embedding_init_method(self.newline)

    def forward(self, media: Media) -> torch.Tensor:
        """Return the embeddings `[tokens, width]` of all items, in their order."""
        tiles = media.tiles
        if not media.items:
            # The trainer waits for the gradients of all weights: without pictures they are zero.
            side = self.vision.tower.side
            tiles = tiles.new_zeros(1, 3, side, side)
        embeddings = self.projector(self.tower(tiles))
        if not media.items:
            return torch.cat([embeddings[0], *([] if self.newline is None else [self.newline[None]])])[:0]
        return torch.cat(arranged(embeddings, media.items, self.vision, self.newline))


def attach(gpt: GPTModel, pictures: PictureEmbedder, placeholders: Sequence[int]) -> None:
    """Make a GPT model with an embedding layer take `media` (`Media`) in its forward pass.

    `placeholders` are the token ids that stand for pictures and videos. With `media`, `input_ids` is the
    whole sequence `[b, s]` even if context parallelism splits it: each rank embeds all of it and keeps its
    part. Without, the model is called as any other GPT model.
    """
    gpt.pictures = pictures
    gpt.register_forward_pre_hook(functools.partial(_embed, tuple(placeholders)), with_kwargs=True)


def _embed(
    placeholders: tuple[int, ...], gpt: GPTModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if "media" not in kwargs:
        return args, kwargs
    given = {**dict(zip(_POSITIONAL, args, strict=False)), **kwargs}
    inputs = {name: given[name] for name in _POSITIONAL}
    hidden = merged(
        gpt.embedding(**inputs), gpt.pictures(kwargs.pop("media")), inputs["input_ids"], placeholders
    )
    return args, {**kwargs, "decoder_input": _own_part(hidden, gpt)}


def merged(
    hidden: torch.Tensor, pictures: torch.Tensor, tokens: torch.Tensor, placeholders: Sequence[int]
) -> torch.Tensor:
    """Return `hidden` `[s, b, width]` with `pictures` `[n, width]` in place of the placeholders.

    They are found in `tokens` `[b, s]`, sample by sample. Raises `ValueError` if there are not `n` of them.
    """
    ids = torch.tensor(placeholders, device=tokens.device)
    sample, position = torch.isin(tokens, ids).nonzero(as_tuple=True)
    if len(position) != len(pictures):
        raise ValueError(f"{len(position)} placeholders for {len(pictures)} embeddings of pictures")
    return hidden.index_put((position, sample), pictures.to(hidden.dtype))


def _own_part(hidden: torch.Tensor, gpt: GPTModel) -> torch.Tensor:
    """Return the part of a sequence `[s, b, width]` that this rank's layers begin with."""
    groups = gpt.pg_collection
    if groups.cp.size() > 1:
        chunks = local_chunks(len(hidden) // groups.cp.size(), groups.cp)
        hidden = torch.cat([hidden[first:end] for first, end in chunks])
    if gpt.config.sequence_parallel:
        hidden = scatter_to_sequence_parallel_region(hidden, group=groups.tp)
    return hidden
