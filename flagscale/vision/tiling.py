"""How a picture is cut into tiles, and how many tokens it becomes. Standard library only.

LLaVA makes one tile of a picture. LLaVA-OneVision makes one of the whole picture, and more by enlarging it to
the best of some grids of tiles, if it is alone or with `tiles_several`. The features of the grid are joined,
those of the padding are cut off, too many are shrunk, and each row ends with a newline. The rounding is that
of transformers 5.19 (`models/llava_onevision`), which decides how many tokens there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from flagscale.vision.tower import Tower

Size = tuple[int, int]
"""Height and width."""
_SLACK = 1.1
"""How far the features of a grid may exceed those of `Tiling.max_tiles` tiles, per side."""


@dataclass(frozen=True)
class Tiling:
    """The grids of tiles to choose from, as heights and widths in pixels, and the most tiles of features.

    Features of a grid that fill more than `max_tiles` tiles, by more than a tenth per side, are shrunk.
    """

    grids: tuple[Size, ...]
    max_tiles: int = 9
    tiles_several: bool = True
    """Whether several pictures of one sample are tiled each, as vLLM does; else each is a single tile."""


@dataclass(frozen=True)
class Vision:
    """What a model does with pictures: its tower, and how a picture fills tiles."""

    tower: Tower
    tiling: Tiling | None = None
    """None: one tile per picture, without newlines (LLaVA-1.5)."""
    fit: str = "square"
    """How a picture without tiling becomes a square: "square" as the tower's own processor does, or "pad"."""
    image_token: str = "<image>"
    video_token: str = "<video>"
    video_frames: int = 8
    """The most frames of a video, which are evenly spaced."""


@lru_cache(maxsize=4096)  # several callers ask for the same picture, and sizes recur
def best_grid(size: Size, grids: tuple[Size, ...]) -> Size:
    """Return the grid that keeps the most of a picture's pixels and, among equals, wastes the fewest."""

    def worth(grid: Size) -> Size:
        scale = min(grid[1] / size[1], grid[0] / size[0])
        kept = min(int(size[1] * scale) * int(size[0] * scale), size[0] * size[1])
        return kept, kept - grid[0] * grid[1]

    return max(grids, key=worth)


def tiles_of(size: Size, vision: Vision, pictures: int = 1) -> int:
    """Return the number of tiles of a picture in a sample with this many pictures."""
    grid = grid_of(size, vision, pictures)
    return 1 if grid is None else 1 + grid[0] * grid[1]


def grid_of(size: Size, vision: Vision, pictures: int = 1) -> Size | None:
    """Return the rows and columns of the tiles that a picture is cut into; None if it is one tile only."""
    tiling = vision.tiling
    if tiling is None or (pictures > 1 and not tiling.tiles_several):
        return None
    height, width = best_grid(size, tiling.grids)
    return height // vision.tower.side, width // vision.tower.side


@dataclass(frozen=True)
class Crop:
    """The part of the features of a grid that shows the picture."""

    top: int
    left: int
    rows: int
    columns: int


def unpadded(size: Size, rows: int, columns: int) -> Crop:
    """Return the part of `rows` x `columns` features of a grid that is not padding around a picture."""
    height, width = size
    if width / height > columns / rows:
        cut = (rows - int(round(height * (columns / width), 7))) // 2
        return Crop(cut, 0, rows - 2 * cut, columns)
    cut = (columns - int(round(width * (rows / height), 7))) // 2
    return Crop(0, cut, rows, columns - 2 * cut)


def shrunk(crop: Crop, vision: Vision) -> Size:
    """Return the rows and columns to which the features of a crop are shrunk, often its own."""
    assert vision.tiling is not None
    ratio = math.sqrt(crop.rows * crop.columns / (vision.tiling.max_tiles * vision.tower.features))
    if ratio <= _SLACK:
        return crop.rows, crop.columns
    return int(crop.rows // ratio), int(crop.columns // ratio)


def image_tokens(size: Size, vision: Vision, pictures: int = 1) -> int:
    """Return the number of tokens of a picture in a sample with this many pictures."""
    features = vision.tower.features
    if vision.tiling is None:
        return features
    grid = grid_of(size, vision, pictures)
    if grid is None:
        return features + 1
    crop = unpadded(size, grid[0] * vision.tower.rows, grid[1] * vision.tower.rows)
    rows, columns = shrunk(crop, vision)
    return features + rows * (columns + 1)


def video_tokens(frames: int, vision: Vision) -> int:
    """Return the number of tokens of a video: of a quarter of each frame's features, and one newline."""
    return frames * math.ceil(vision.tower.rows / 2) ** 2 + 1


def most_image_tokens(vision: Vision) -> int:
    """Return a number of tokens that no single picture exceeds."""
    features, rows = vision.tower.features, vision.tower.rows
    if vision.tiling is None:
        return features
    kept = _SLACK**2 * vision.tiling.max_tiles * features
    of_grids = [
        (height // vision.tower.side * rows, width // vision.tower.side)
        for height, width in vision.tiling.grids
    ]
    return features + max(int(min(lines * tiles * rows, kept)) + lines for lines, tiles in of_grids)
