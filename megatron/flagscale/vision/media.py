"""The pictures and videos of a micro-batch, as they travel from the loader to the tower."""

from __future__ import annotations

from dataclasses import dataclass

import torch

IMAGE, VIDEO = "image", "video"


@dataclass(frozen=True)
class Item:
    """One picture or video: its `height` and `width` in pixels, and its number of tiles (or frames)."""

    kind: str
    height: int
    width: int
    tiles: int


@dataclass(frozen=True)
class Media:
    """All pictures and videos of a micro-batch, in the order of their placeholders, sample by sample.

    `tiles` is uint8 `[sum of the items' tiles, 3, side, side]`: pixels before they are normalised.
    """

    tiles: torch.Tensor
    items: tuple[Item, ...]

    def __post_init__(self) -> None:
        assert len(self.tiles) == sum(item.tiles for item in self.items)
