"""A random picture among random tokens, in the forms that transformers and Megatron's model take."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from flagscale.vision.arguments import arguments_of, vision_of
from flagscale.vision.tiling import Vision, image_tokens, tiles_of
from megatron.flagscale.convert.model import Model


@dataclass(frozen=True)
class PictureSample:
    """Tokens `[1, length]` with one picture, and the tiles uint8 `[n, 3, side, side]` of that picture."""

    tokens: torch.Tensor
    tiles: torch.Tensor
    size: tuple[int, int]
    image_id: int
    vision: Vision

    @property
    def of_transformers(self) -> dict[str, torch.Tensor]:
        """The arguments of a model's `forward` in transformers."""
        tower = self.vision.tower
        mean, std = (torch.tensor(of)[:, None, None] for of in (tower.mean, tower.std))
        pixels = (self.tiles.float() / 255 - mean) / std
        if not self.vision.tiling:
            return {"input_ids": self.tokens, "pixel_values": pixels}
        sizes = {"image_sizes": torch.tensor([self.size]), "batch_num_images": torch.tensor([1])}
        return {"input_ids": self.tokens, "pixel_values": pixels[None], **sizes}

    @property
    def of_megatron(self) -> dict[str, Any]:
        """What `media_of` and `picture_config` read, as `torch.save` keeps it."""
        described = arguments_of(self.vision)
        return {"tiles": self.tiles, "size": self.size, "image_id": self.image_id, "vision": described}


def sample_of(model: Model, tokens: torch.Tensor, image_id: int) -> PictureSample:
    """Return the first row of `tokens` with a wide picture in its middle; `image_id` is its placeholder."""
    vision = model.vision
    assert vision
    tower = vision.tower
    size = (tower.side - 3, 2 * tower.side - 5)
    generator = torch.Generator().manual_seed(1)
    shape = (tiles_of(size, vision), 3, tower.side, tower.side)
    tiles = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    text = tokens[:1].masked_fill(tokens[:1] == image_id, (image_id + 1) % model.vocab)
    placeholders = torch.full((1, image_tokens(size, vision)), image_id)
    half = text.shape[1] // 2
    whole = torch.cat([text[:, :half], placeholders, text[:, half:]], 1)
    return PictureSample(whole, tiles, size, image_id, vision)


def media_of(pictures: Mapping[str, Any], device: torch.device) -> Any:
    """Return the picture of a sample as Megatron's model takes it."""
    from megatron.flagscale.vision.media import IMAGE, Item, Media

    tiles = pictures["tiles"].to(device)
    height, width = pictures["size"]
    return Media(tiles, (Item(IMAGE, height, width, len(tiles)),))


def picture_config(args: argparse.Namespace, pictures: Mapping[str, Any]) -> Any:
    """Return the configuration of a model whose language model the worker's arguments describe."""
    from megatron.training.argument_utils import gpt_config_from_args

    from megatron.flagscale.vision.builder import LlavaConfig

    config = gpt_config_from_args(args, model_config_cls=LlavaConfig)
    config.vision, config.image_id = vision_of(pictures["vision"]), pictures["image_id"]
    return config
