"""Sizes of the pictures that Emu3 draws: from a ratio or a size to its grid of codes, and what it takes.

A code is a token that stands for 8 x 8 pixels. A picture of H x W codes (its *grid*) takes H rows of W codes
and a mark, and three more marks at its end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from flagscale.frozen import dataclass

FACTOR = 8
"""Pixels on each side of a code; transformers' `Emu3Processor` has it as a constant too."""
AREA = 518_400
"""Pixels of a picture that is asked for by its ratio: 720 x 720, which Emu3 was trained for."""
SCALE = 3.0
"""Of guidance, as BAAI's README draws."""
NEGATIVE = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, "
    "worst quality, low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
)
"""The usual negative prompt of a picture (v0.6.0's inference_emu3.py and BAAI's README)."""
_RATIO = re.compile(r"([0-9]{1,6}):([0-9]{1,6})")
_SIZE = re.compile(r"([0-9]{1,6})x([0-9]{1,6})")


@dataclass(frozen=True)
class Grid:
    """The height and the width of a picture, in codes; each is at least 1."""

    height: int
    width: int

    @property
    def tokens(self) -> int:
        """The number of tokens that the model generates for the picture."""
        return self.height * (self.width + 1) + 3

    @property
    def size(self) -> str:
        """The size in pixels, as a user writes it: `width x height`."""
        return f"{self.width * FACTOR}x{self.height * FACTOR}"


def grid_of(asked: str, area: int = AREA) -> Grid:
    """Return the grid of a ratio (`16:9`, of `area` pixels) or of a size in pixels (`960x544`).

    Both name the width first. A ratio is rounded as `Emu3Processor.calculate_generate_size` of transformers
    and the processor of v0.6.0 do.

    Raises:
        ValueError: it is neither, or not a picture of whole codes; the message names what is possible.
    """
    if ratio := _RATIO.fullmatch(asked):
        return _of_ratio(asked, int(ratio[1]), int(ratio[2]), area)
    if size := _SIZE.fullmatch(asked):
        return _of_size(asked, int(size[1]), int(size[2]))
    raise ValueError(f"`{asked}` is neither a ratio like `16:9` nor a size in pixels like `960x544`")


def _of_ratio(asked: str, width: int, height: int, area: int) -> Grid:
    if not width or not height:
        raise ValueError(f"ratio `{asked}`: both numbers must be at least 1")
    scale: float = (area / (width * height)) ** 0.5
    grid = Grid(round(height * scale / FACTOR), round(width * scale / FACTOR))
    if not grid.height or not grid.width:
        longest = area // FACTOR**2
        what = f"ratio `{asked}` leaves less than {FACTOR} pixels for one side of a picture of {area} pixels"
        raise ValueError(f"{what}; use a ratio between {longest}:1 and 1:{longest}")
    return grid


def _of_size(asked: str, width: int, height: int) -> Grid:
    if width % FACTOR or height % FACTOR or not width or not height:
        near = "x".join(str(max(round(side / FACTOR), 1) * FACTOR) for side in (width, height))
        raise ValueError(f"size `{asked}`: both sides must be multiples of {FACTOR} pixels, such as `{near}`")
    return Grid(height // FACTOR, width // FACTOR)


def too_long(grid: Grid, prompt: int, positions: int) -> str:
    """Return why a picture does not fit the model, with the largest size that does; "" if it fits.

    Args:
        prompt: number of tokens of the longer of the prompt and the negative prompt.
        positions: of the model, or fewer if the engine has a shorter limit.
    """
    if prompt + grid.tokens <= positions:
        return ""
    what = f"a picture of {grid.size} pixels takes {grid.tokens} tokens"
    what += f", and with {prompt} of its prompt it does not fit the model's {positions} positions"
    largest = _largest(grid, positions - prompt)
    return (
        f"{what}; the largest of this ratio is {largest.size}" if largest else f"{what}; shorten the prompt"
    )


def _largest(grid: Grid, room: int) -> Grid | None:
    """Return the largest smaller grid of nearly the same ratio that fits `room` tokens; None if none does."""
    scale = math.sqrt(max(room, 0) / grid.tokens)
    for height in range(math.ceil(grid.height * scale), 0, -1):
        smaller = Grid(height, max(round(height * grid.width / grid.height), 1))
        if smaller.tokens <= room:
            return smaller
    return Grid(1, room - 4) if room > 4 else None  # one row, with its mark and three at the end


def image_area(processor: Mapping[str, Any]) -> int:
    """Return the pixels of a picture that is asked for by its ratio, from an image processor's configuration.

    `image_area` is our key there: transformers ignores it and takes 518 400 if its caller names nothing else.

    Raises:
        ValueError: the value is not a number of pixels.
    """
    area = processor.get("image_area", AREA)
    if type(area) is not int or area < FACTOR**2:
        raise ValueError(f"`image_area` takes a whole number of at least {FACTOR**2} pixels, not {area!r}")
    return area
