"""The embeddings of a picture's or a video's tiles in the order of its tokens.

The rules are those of transformers 5.19 (`models/llava_onevision`); `flagscale.vision.tiling` counts the
tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from flagscale.vision.tiling import Vision, grid_of, shrunk, unpadded
from megatron.flagscale.vision.media import VIDEO, Item


def arranged(
    tiles: torch.Tensor, items: Sequence[Item], vision: Vision, newline: torch.Tensor | None
) -> list[torch.Tensor]:
    """Return the embeddings `[tokens, width]` of each item, from those of all tiles `[n, features, width]`.

    `newline` `[width]` belongs to models with tiling; without it a picture is one tile, and a video an error.
    """
    parts = tiles.split([item.tiles for item in items])
    return [_item(part, item, vision, newline) for part, item in zip(parts, items, strict=True)]


def _item(tiles: torch.Tensor, item: Item, vision: Vision, newline: torch.Tensor | None) -> torch.Tensor:
    if newline is None:
        if item.kind == VIDEO or item.tiles != 1:
            raise ValueError(f"a model without tiling cannot take {item}: it reads pictures of one tile each")
        return tiles[0]
    if item.kind == VIDEO:
        return torch.cat([_video(tiles, vision), newline[None]])
    if item.tiles == 1:
        return torch.cat([tiles[0], newline[None]])
    return torch.cat([tiles[0], _grid(tiles[1:], item, vision, newline)])


def _grid(tiles: torch.Tensor, item: Item, vision: Vision, newline: torch.Tensor) -> torch.Tensor:
    """Join the tiles of a grid, cut off padding, shrink, and end each row with a newline."""
    size, side = (item.height, item.width), vision.tower.rows
    rows, columns = grid_of(size, vision) or (0, 0)
    if rows * columns != len(tiles):
        raise ValueError(f"{item} needs {rows} x {columns} tiles, and one of the whole picture")
    whole = tiles.view(rows, columns, side, side, -1).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    crop = unpadded(size, rows * side, columns * side)
    whole = whole[crop.top : crop.top + crop.rows, crop.left : crop.left + crop.columns]
    small = shrunk(crop, vision)
    if small != (crop.rows, crop.columns):
        whole = _resized(whole[None], small)[0]
    ends = newline.expand(len(whole), 1, -1)
    return torch.cat([whole, ends], 1).flatten(0, 1)


def _video(frames: torch.Tensor, vision: Vision) -> torch.Tensor:
    """Return a quarter of the embeddings of each frame, one frame after the other."""
    side = vision.tower.rows
    half = math.ceil(side / 2)
    return _resized(frames.view(-1, side, side, frames.size(-1)), (half, half)).flatten(0, 2)


def _resized(grids: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Interpolate grids `[n, rows, columns, width]` to another number of rows and columns."""
    return F.interpolate(grids.permute(0, 3, 1, 2), size, mode="bilinear").permute(0, 2, 3, 1)
