"""Transformers' processors of pictures with the sizes of a model, to compare tiles and tokens with."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from flagscale.vision.tiling import Vision


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    """Return a picture in RGB of which no two pixels are alike, so that each wrong one is seen."""
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8))


def image_processor(vision: Vision) -> Any:
    """Return the processor (on PIL) that transformers uses for such a model."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    side = vision.tower.side
    square = {"height": side, "width": side}
    shared = {"image_mean": [*vision.tower.mean], "image_std": [*vision.tower.std]}
    if vision.tiling:
        grids = [[*grid] for grid in vision.tiling.grids]
        return LlavaOnevisionImageProcessorPil(size=square, image_grid_pinpoints=grids, **shared)
    if vision.fit == "pad":
        return LlavaImageProcessorPil(size={"shortest_edge": side}, crop_size=square, do_pad=True, **shared)
    if vision.tower.kind == "clip":
        return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square, **shared)
    return SiglipImageProcessorPil(size=square, **shared)


def processed(processor: Any, images: Any) -> np.ndarray:
    """Return the pixels of a processor for one sample's pictures: float32 `[tiles, 3, side, side]`."""
    pixels = np.asarray(processor(images, return_tensors="np")["pixel_values"])
    return pixels.reshape(-1, *pixels.shape[-3:])


def normalised(tiles: np.ndarray, vision: Vision) -> np.ndarray:
    """Return tiles as a tower computes with them: float32, by the operations of transformers in order."""
    mean, std = (np.array(one, np.float32)[:, None, None] for one in (vision.tower.mean, vision.tower.std))
    scaled: np.ndarray = (tiles.astype(np.float64) * (1 / 255)).astype(np.float32)
    result: np.ndarray = (scaled - mean) / std
    return result
