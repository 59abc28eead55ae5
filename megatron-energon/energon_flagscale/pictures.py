"""Pictures and frames from files to the tiles that the tower reads.

A file is decoded as vLLM decodes what a user sends: turned upright by its EXIF data, and on white where it
is transparent. Pixels of tiles are those of transformers' processors before they are normalised: the PIL ones
for pictures, that of LLaVA-OneVision for videos (which resizes with torch).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from energon_flagscale.unusable import UnusableSample
from flagscale.errors import first_line
from flagscale.vision.tiling import Size, Vision, best_grid, grid_of

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that are read. Others can start programs, for instance EPS."""
MOST_PIXELS = 178_956_970
"""The most pixels of a picture, also of one that is padded to a square: Pillow's own limit."""
_WITH_PREVIEW = "MPO"
"""The format of photographs with a preview beside them, which is no second picture."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BICUBIC = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class Picture:
    """A picture whose header was read; its pixels are decoded by `decoded`."""

    name: str
    image: Image.Image
    orientation: int

    @property
    def size(self) -> Size:
        """Height and width of the upright picture."""
        width, height = self.image.size
        return (width, height) if self.orientation >= 5 else (height, width)


def open_picture(data: bytes, name: str) -> Picture:
    """Read a picture's header.

    Raises:
        UnusableSample: it is not a picture of a known format, it is too large, or it has several frames.
    """
    if not data:
        raise UnusableSample(f"{name} is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        picture = Picture(name, image, _orientation(image, data))
    except MemoryError:
        raise
    except Image.UnidentifiedImageError:
        what = f"{name} is not a picture, or is damaged at its beginning"
        raise UnusableSample(f"{what}; known are {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's plugins raise errors of many types for damaged files
        raise UnusableSample(f"{name} cannot be read: {first_line(error)}") from error
    if math.prod(image.size) > MOST_PIXELS:
        raise UnusableSample(f"{name} has {image.width}x{image.height} pixels; the most are {MOST_PIXELS}")
    if image.format != _WITH_PREVIEW and (frames := _frames(image, name)) > 1:
        raise UnusableSample(f"{name} has {frames} frames; save the one you mean, or make a video of it")
    return picture


def _frames(image: Image.Image, name: str) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise UnusableSample(f"{name} is damaged after its first frame: {first_line(error)}") from error


def decoded(picture: Picture) -> Image.Image:
    """Return the pixels of a picture, upright and in RGB.

    Raises:
        UnusableSample: the file is cut off or damaged, or its pixels have no defined range.
    """
    image = picture.image
    _load(picture)
    if image.mode in ("I", "F"):
        what = f"{picture.name} has 32 bits per pixel, whose range is unknown"
        raise UnusableSample(f"{what}; save it with 8 bits per channel")
    if image.mode.startswith("I;16"):
        # Pillow would turn all values above 255 into white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode != "RGB" and ("A" in image.getbands() or "transparency" in image.info):
        alpha = image.convert("RGBA")
        image = Image.new("RGB", image.size, (255, 255, 255))
        image.paste(alpha, mask=alpha.getchannel("A"))
    if image.mode != "RGB":
        image = image.convert("RGB")
    turn = _UPRIGHT.get(picture.orientation)
    return image if turn is None else image.transpose(turn)


def check_picture(picture: Picture) -> None:
    """Raise `UnusableSample` exactly if `decoded` does, with less memory where the format allows."""
    picture.image.draft(picture.image.mode, (1, 1))
    decoded(picture)


def picture_tiles(image: Image.Image, vision: Vision, pictures: int = 1) -> np.ndarray:
    """Return the tiles of an upright picture in RGB: uint8 `[tiles, 3, side, side]`, the whole picture first.

    `pictures` is the number of pictures in the sample.

    Raises:
        UnusableSample: padded to a square, the picture would be too large.
    """
    side = vision.tower.side
    size = image.height, image.width
    grid = grid_of(size, vision, pictures)
    tiles = np.empty((1 if grid is None else 1 + math.prod(grid), 3, side, side), np.uint8)
    if vision.tiling and grid:
        tiles[0] = _channels(image.resize((side, side), _BICUBIC))
        _fill(tiles[1:], grid, _into(image, best_grid(size, vision.tiling.grids)))
    elif vision.tiling or vision.fit == "pad":
        tiles[0] = _channels(_padded(image, vision.tower.mean).resize((side, side), _BICUBIC))
    elif vision.tower.kind == "clip":
        tiles[0] = _channels(_middle(image, side))
    else:
        tiles[0] = _channels(image.resize((side, side), _BICUBIC))
    return tiles


def evenly_spaced(frames: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` frames, evenly spaced with the first and the last, as vLLM chooses them."""
    if len(frames) <= most:
        return [*frames]
    return [frames[place] for place in np.linspace(0, len(frames) - 1, most, dtype=int)]


def video_tiles(frames: Sequence[Image.Image], vision: Vision) -> np.ndarray:
    """Return a tile per upright frame in RGB: uint8 `[frames, 3, side, side]`."""
    import torch  # here, because those who only check pictures start many processes

    side = vision.tower.side
    tiles = [
        torch.nn.functional.interpolate(
            torch.from_numpy(_channels(frame).copy())[None], (side, side), mode="bicubic", antialias=True
        )
        for frame in frames
    ]
    together: np.ndarray = torch.cat(tiles).numpy()
    return together


def _orientation(image: Image.Image, data: bytes) -> int:
    """Return how a decoded picture is to be turned: its EXIF orientation, 1 (upright) to 8; 1 if unknown."""
    if image.format == "TIFF":
        return 1  # Pillow turns these itself
    if image.format == "PNG" and "exif" not in image.info and b"eXIf" not in data:
        return 1  # Pillow would decode the whole picture to look for it after the pixels
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data: upright, as vLLM takes it
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _load(picture: Picture) -> None:
    try:
        picture.image.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise errors of many types for damaged files
        raise UnusableSample(f"{picture.name} cannot be decoded: {first_line(error)}") from error


def _channels(image: Image.Image) -> np.ndarray:
    """Return a picture's pixels as `[3, height, width]`, in memory as `[height, 3, width]`.

    From there, rows are copied to tiles in one piece, which takes half as long as from Pillow's own order.
    """
    rows = np.frombuffer(image.tobytes("raw", "RGB;L"), np.uint8)
    return rows.reshape(image.height, 3, image.width).transpose(1, 0, 2)


def _into(image: Image.Image, target: Size) -> Image.Image:
    """Return a picture resized to fit into a height and width, one of which it fills."""
    by_width, by_height = target[1] / image.width, target[0] / image.height
    if by_width < by_height:
        return image.resize((target[1], min(math.ceil(image.height * by_width), target[0])), _BICUBIC)
    return image.resize((min(math.ceil(image.width * by_height), target[1]), target[0]), _BICUBIC)


def _fill(tiles: np.ndarray, grid: Size, image: Image.Image) -> None:
    """Cut a picture, which black surrounds, into the tiles of a grid."""
    side = tiles.shape[-1]
    rows, columns = grid
    pixels = _channels(image)
    top, left = (rows * side - image.height) // 2, (columns * side - image.width) // 2
    if (top, left) != (0, 0) or pixels.shape[1:] != (rows * side, columns * side):
        tiles[:] = 0
    for number, tile in enumerate(tiles):
        above, before = number // columns * side - top, number % columns * side - left
        first, start = max(above, 0), max(before, 0)
        part = pixels[:, first : max(above + side, 0), start : max(before + side, 0)]
        row, column = first - above, start - before
        tile[:, row : row + part.shape[1], column : column + part.shape[2]] = part


def _padded(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """Return a picture in the middle of a square of the mean colour."""
    side = max(image.size)
    if image.width == image.height:
        return image
    if side**2 > MOST_PIXELS:
        what = f"a picture of {image.width}x{image.height} pixels cannot be padded to a square"
        raise UnusableSample(f"{what}: {side}x{side} are more than {MOST_PIXELS}")
    square = Image.new("RGB", (side, side), tuple(int(one * 255) for one in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _middle(image: Image.Image, side: int) -> Image.Image:
    """Return the square in the middle of a picture whose shorter edge is resized to `side`."""
    short, long = sorted(image.size)
    length = int(side * long / short)
    start = (length - side) // 2
    if image.width <= image.height:
        whole, square = (side, length), (0, start, side, start + side)
    else:
        whole, square = (length, side), (start, 0, start + side, side)
    if length * side <= MOST_PIXELS:
        return image.resize(whole, _BICUBIC).crop(square)
    # The rest of a picture that is one pixel high would fill the memory.
    scale = [size / new for size, new in zip(image.size, whole, strict=True)]
    box = (square[0] * scale[0], square[1] * scale[1], square[2] * scale[0], square[3] * scale[1])
    return image.resize((side, side), _BICUBIC, box)
