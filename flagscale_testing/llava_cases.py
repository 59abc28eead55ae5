"""Micro-batches with pictures, as Megatron's model and as transformers' take them, to compare their logits.

Used by the tests and, for the table in docs/multimodal.md, by `benchmarks/vision_cases.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from flagscale.vision.tiling import Vision, image_tokens, tiles_of, video_tokens
from flagscale_testing.llava_models import IMAGE, VIDEO, VOCAB, LlavaModel, small_vision
from flagscale_testing.processors import normalised
from megatron.flagscale.vision import media
from megatron.flagscale.vision.media import Item, Media

GRADIENTS = (
    "a batch of pictures and a video",
    "LLaVA-1.5, a batch",
    "CLIP with tiles",
    "several pictures, single",
)
"""The cases whose gradients are compared: in each, every weight of its model takes part."""
TOLERANCE = 1e-4
"""The largest difference between two logits that counts as equal, relative to the largest logit."""


@dataclass(frozen=True)
class Picture:
    """A picture of a sample, in pixels."""

    height: int
    width: int


@dataclass(frozen=True)
class Video:
    """A video of a sample."""

    frames: int


Sample = tuple[int | Picture | Video, ...]
"""Numbers of text tokens, pictures and videos, in the order of a sample."""

_SINGLE = small_vision("siglip", True)
assert _SINGLE.tiling
_SINGLE = replace(_SINGLE, tiling=replace(_SINGLE.tiling, tiles_several=False))
MODELS = {
    "SigLIP, Qwen2": LlavaModel(small_vision("siglip", True)),
    "SigLIP, Qwen2, single": LlavaModel(_SINGLE),
    "SigLIP of 3 x 3, Qwen3": LlavaModel(small_vision("siglip", True, side=44, layers=2), "Qwen3", tied=True),
    "SigLIP, Llama": LlavaModel(small_vision("siglip", True), "Llama"),
    "CLIP with tiles, Qwen2": LlavaModel(small_vision("clip", True)),
    "CLIP, Llama": LlavaModel(small_vision("clip", False, side=28), "Llama"),
    "CLIP of 3 x 3, Qwen2": LlavaModel(small_vision("clip", False, side=44, layers=2)),
    "SigLIP without tiles, Qwen3": LlavaModel(small_vision("siglip", False), "Qwen3"),
}
CASES: Mapping[str, tuple[str, tuple[Sample, ...]]] = {
    "text alone": ("SigLIP, Qwen2", ((11,),)),
    "one small picture": ("SigLIP, Qwen2", ((1, Picture(5, 9), 2),)),
    "one picture of odd size": ("SigLIP, Qwen2", ((1, Picture(33, 45), 2),)),
    "one wide picture": ("SigLIP, Qwen2", ((1, Picture(50, 200), 2),)),
    "a grid of padding alone": ("SigLIP, Qwen2", ((3, Picture(7, 181), 2),)),
    "one row of features": ("SigLIP of 3 x 3, Qwen3", ((3, Picture(1, 263), 2),)),
    "one column of features": ("SigLIP of 3 x 3, Qwen3", ((3, Picture(263, 1), 2),)),
    "36 tiles, shrunk": ("SigLIP, Qwen2", ((1, Picture(160, 170), 2),)),
    "36 tiles, unpadded and shrunk": ("SigLIP of 3 x 3, Qwen3", ((1, Picture(190, 263), 2),)),
    "several pictures, tiled": (
        "SigLIP, Qwen2",
        ((1, Picture(33, 45), 2, Picture(90, 30), 1, Picture(31, 31), 4),),
    ),
    "several pictures, single": (
        "SigLIP, Qwen2, single",
        ((1, Picture(33, 45), 2, Picture(90, 30), 1, Picture(31, 31), 4),),
    ),
    "adjacent pictures": ("SigLIP of 3 x 3, Qwen3", ((Picture(44, 44), Picture(45, 100), 3),)),
    "a batch": ("SigLIP, Qwen2", ((1, Picture(33, 61), 2), (Picture(140, 100), 4))),
    "a batch with text alone": (
        "SigLIP, Qwen2, single",
        ((1, Picture(33, 61), 2, Picture(20, 20), 1), (4,), (2, Picture(70, 33), 1)),
    ),
    "a video": ("SigLIP, Qwen2", ((1, Video(5), 2),)),
    "a video of odd rows": ("SigLIP of 3 x 3, Qwen3", ((1, Video(4), 2),)),
    "a batch of pictures and a video": (
        "SigLIP, Llama",
        ((2, Picture(33, 61), 1), (1, Video(3), 2), (Picture(90, 33), Picture(33, 90), 5)),
    ),
    "a video before a picture": ("SigLIP, Llama", ((1, Video(2), 1, Picture(60, 30), 2),)),
    "CLIP with tiles": ("CLIP with tiles, Qwen2", ((1, Picture(50, 71), 2),)),
    "LLaVA-1.5": ("CLIP, Llama", ((1, Picture(33, 45), 2),)),
    "LLaVA-1.5, text alone": ("CLIP, Llama", ((7,), (5,))),
    "LLaVA-1.5, a batch": (
        "CLIP of 3 x 3, Qwen2",
        ((1, Picture(9, 9), 2, Picture(50, 9), 1), (Picture(9, 70), 6)),
    ),
    "LLaVA-1.5 with SigLIP": ("SigLIP without tiles, Qwen3", ((1, Picture(33, 45), 2), (8,))),
}
"""Each with the name of its model, and its samples."""


@dataclass(frozen=True)
class Batch:
    """A micro-batch: `tokens` `[b, s]`, which of them are no padding, and its pictures."""

    tokens: torch.Tensor
    kept: torch.Tensor
    media: Media
    pictures_of: tuple[int, ...]
    """The number of pictures of each sample that has any."""

    @property
    def positions(self) -> torch.Tensor:
        return torch.arange(self.tokens.size(1)).expand_as(self.tokens)


@cache
def of_transformers(model: str) -> Any:
    """Return the model of transformers of this name."""
    return MODELS[model].of_transformers()


def batch(case: str, multiple: int = 1) -> Batch:
    """Return the micro-batch of a case with random text and pixels, padded to a multiple of tokens."""
    model, samples = CASES[case]
    vision = MODELS[model].vision
    generator = torch.Generator().manual_seed(len(case))
    rows: list[torch.Tensor] = []
    items: list[Item] = []
    for sample in samples:
        pictures = sum(isinstance(part, Picture) for part in sample)
        row: list[torch.Tensor] = []
        for part in sample:
            if isinstance(part, int):
                row.append(torch.randint(3, IMAGE, (part,), generator=generator))
            elif isinstance(part, Picture):
                size = (part.height, part.width)
                row.append(torch.full((image_tokens(size, vision, pictures),), IMAGE))
                items.append(Item(media.IMAGE, *size, tiles_of(size, vision, pictures)))
            else:
                row.append(torch.full((video_tokens(part.frames, vision),), VIDEO))
                items.append(Item(media.VIDEO, vision.tower.side, vision.tower.side, part.frames))
        rows.append(torch.cat(row))
    side, count = vision.tower.side, sum(item.tiles for item in items)
    tiles = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    longest = max(map(len, rows))
    tokens = torch.zeros(len(rows), longest + -longest % multiple, dtype=torch.long)
    kept = torch.zeros_like(tokens, dtype=torch.bool)
    for at, one in enumerate(rows):
        tokens[at, : len(one)], kept[at, : len(one)] = one, True
    return Batch(tokens, kept, Media(tiles, tuple(items)), _pictures_of(samples))


def inputs_of_transformers(given: Batch, vision: Vision) -> dict[str, torch.Tensor]:
    """Return the micro-batch as the model of transformers takes it."""
    pixels = torch.from_numpy(normalised(given.media.tiles.numpy(), vision))
    parts = pixels.split([item.tiles for item in given.media.items])
    pairs = [*zip(given.media.items, parts, strict=True)]
    pictures = [(item, part) for item, part in pairs if item.kind == media.IMAGE]
    inputs = {"input_ids": given.tokens, "attention_mask": given.kept.long()}
    if pictures and vision.tiling is None:
        inputs["pixel_values"] = torch.cat([part for _, part in pictures])
    if pictures and vision.tiling:
        most = max(item.tiles for item, _ in pictures)
        inputs["pixel_values"] = torch.stack(
            [torch.cat([part, part.new_zeros(most - len(part), *part.shape[1:])]) for _, part in pictures]
        )
        inputs["image_sizes"] = torch.tensor([(item.height, item.width) for item, _ in pictures])
        # Pictures that are tiled each are given as those of a flat list are: as if each were alone.
        nested = given.pictures_of if not vision.tiling.tiles_several else (1,) * len(pictures)
        inputs["batch_num_images"] = torch.tensor(nested)
    if videos := [part for item, part in pairs if item.kind == media.VIDEO]:
        inputs["pixel_values_videos"] = torch.stack(videos)
    return inputs


def expected_logits(case: str, given: Batch) -> torch.Tensor:
    """Return the logits `[b, s, vocabulary]` of transformers."""
    model = CASES[case][0]
    logits: torch.Tensor = of_transformers(model)(
        **inputs_of_transformers(given, MODELS[model].vision)
    ).logits
    return logits


def probe(given: Batch) -> torch.Tensor:
    """Return random gradients of the logits `[b, s, vocabulary]`, zero at padding."""
    drawn = torch.randn(*given.tokens.shape, VOCAB, generator=torch.Generator().manual_seed(0))
    return drawn * given.kept[..., None]


def expected_gradients(case: str, given: Batch) -> dict[str, torch.Tensor]:
    """Return the gradients of the weights of transformers, by name, for those of `probe`."""
    reference = of_transformers(CASES[case][0])
    reference.zero_grad()
    (expected_logits(case, given) * probe(given)).sum().backward()
    return {name: one.grad for name, one in reference.named_parameters() if one.grad is not None}


def difference(found: torch.Tensor, expected: torch.Tensor, kept: torch.Tensor) -> float:
    """Return the largest difference of logits that are no padding's, relative to the largest logit."""
    error = (found - expected)[kept].abs().max() / expected[kept].abs().max()
    return float(error)


def _pictures_of(samples: tuple[Sample, ...]) -> tuple[int, ...]:
    counts = (sum(isinstance(part, Picture) for part in sample) for sample in samples)
    return tuple(count for count in counts if count)
