"""Tiles against transformers' processors, and every odd kind of file: right pixels, or an error in words."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from energon_flagscale import pictures
from energon_flagscale.pictures import (
    check_picture,
    decoded,
    evenly_spaced,
    open_picture,
    picture_tiles,
    video_tiles,
)
from energon_flagscale.unusable import UnusableSample
from flagscale.vision.arguments import usual_grids
from flagscale.vision.tiling import Tiling, Vision, tiles_of
from flagscale.vision.tower import TOWERS
from flagscale_testing.processors import image_processor, normalised, processed
from flagscale_testing.processors import noise as picture

SIDE = 28
GRIDS = usual_grids(SIDE)
CLIP, SIGLIP = (replace(TOWERS[name], side=SIDE) for name in ("clip", "siglip"))
TILED = Vision(SIGLIP, Tiling(GRIDS))
SIZES = [
    (40, 60),
    (61, 33),
    (28, 28),
    (1, 57),
    (90, 1),
    (7, 300),
    (301, 2),
    (170, 169),
    (29, 27),
    (1, 1),
    (200, 333),
]
RED, GREEN, BLUE, WHITE = (254, 0, 0), (0, 255, 1), (0, 0, 254), (255, 255, 255)


VISIONS = {
    "clip": Vision(CLIP),
    "siglip": Vision(SIGLIP),
    "pad clip": Vision(CLIP, fit="pad"),
    "pad siglip": Vision(SIGLIP, fit="pad"),
    "tiled siglip": TILED,
    "tiled clip": Vision(CLIP, Tiling(GRIDS)),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", VISIONS)
def test_pixels_equal_those_of_transformers(name: str, size: tuple[int, int]) -> None:
    vision, image = VISIONS[name], picture(*size)
    tiles = picture_tiles(image, vision)
    theirs = processed(image_processor(vision), [image])
    assert tiles.dtype == np.uint8
    assert len(tiles) == len(theirs) == tiles_of(size, vision)
    np.testing.assert_array_equal(normalised(tiles, vision), theirs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tower", [CLIP, SIGLIP])
def test_pictures_that_share_a_sample_can_be_one_tile_each(tower: Any, size: tuple[int, int]) -> None:
    vision = Vision(tower, Tiling(GRIDS, tiles_several=False))
    images = [picture(*size), picture(50, 50)]
    tiles = np.concatenate([picture_tiles(image, vision, 2) for image in images])
    theirs = processed(image_processor(vision), [images])
    np.testing.assert_array_equal(normalised(tiles, vision), theirs)


@pytest.mark.parametrize("size", [(40, 60), (61, 33), (28, 28), (200, 17)])
def test_frames_equal_those_of_transformers(size: tuple[int, int]) -> None:
    from transformers.models.llava_onevision.video_processing_llava_onevision import (
        LlavaOnevisionVideoProcessor,
    )

    frames = [picture(*size, seed) for seed in range(3)]
    theirs = LlavaOnevisionVideoProcessor(
        size={"height": SIDE, "width": SIDE}, do_rescale=False, do_normalize=False
    )([np.stack([np.asarray(frame) for frame in frames])], return_tensors="pt")["pixel_values_videos"][0]
    assert torch.equal(torch.from_numpy(video_tiles(frames, TILED)), theirs)


def test_middle_of_a_very_long_picture_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = picture_tiles(picture(3, 999), VISIONS["clip"]).astype(int)
    monkeypatch.setattr(pictures, "MOST_PIXELS", SIDE * SIDE)
    assert abs(picture_tiles(picture(3, 999), VISIONS["clip"]) - whole).max() <= 1
    with pytest.raises(UnusableSample, match="333x2 pixels cannot be padded to a square: 333x333"):
        picture_tiles(picture(2, 333), VISIONS["pad clip"])


@pytest.mark.parametrize(
    ("count", "places"),
    [(3, [0, 1, 2]), (4, [0, 1, 2, 3]), (9, [0, 2, 5, 8]), (100, [0, 33, 66, 99]), (1, [0])],
)
def test_frames_are_evenly_spaced_with_the_ends(count: int, places: list[int]) -> None:
    assert evenly_spaced(range(count), 4) == places
    assert evenly_spaced(range(count), 1) == [0]


def saved(image: Image.Image, kind: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def halves(left: Any, right: Any, mode: str = "RGB") -> Image.Image:
    """Return a picture of 16 x 8 pixels in two colours."""
    image = Image.new(mode, (16, 8), right)
    image.paste(left, (0, 0, 8, 8))
    return image


def two(data: bytes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    image = decoded(open_picture(data, "image0"))
    assert image.mode == "RGB"
    check_picture(open_picture(data, "image0"))
    return image.getpixel((2, image.height // 2)), image.getpixel((image.width - 3, image.height // 2))


def palette(transparent: bool) -> bytes:
    image = Image.new("P", (16, 8), 1)
    image.putpalette([*RED, *GREEN])
    image.paste(0, (0, 0, 8, 8))
    return saved(image, "PNG", **({"transparency": 0} if transparent else {}))


def sixteen_bits() -> Image.Image:
    values = np.full((8, 16), 0x8040, np.uint16)
    values[:, :8] = 0x01FF
    return Image.fromarray(values)


@pytest.mark.parametrize(
    ("data", "left", "right"),
    [
        (saved(halves(RED, BLUE), "PNG"), RED, BLUE),
        (saved(halves(RED, BLUE), "WEBP", lossless=True), RED, BLUE),
        (saved(halves(RED, BLUE), "BMP"), RED, BLUE),
        (saved(halves(RED, BLUE), "TIFF"), RED, BLUE),
        (saved(halves(RED, BLUE), "GIF"), RED, BLUE),
        (saved(halves(10, 200, "L"), "PNG"), (10, 10, 10), (200, 200, 200)),
        (saved(halves(0, 1, "1"), "PNG"), (0, 0, 0), WHITE),
        (palette(False), RED, GREEN),
        (palette(True), WHITE, GREEN),
        (saved(halves((*RED, 0), (*BLUE, 255), "RGBA"), "PNG"), WHITE, BLUE),
        (saved(halves((9, 0), (9, 255), "LA"), "PNG"), WHITE, (9, 9, 9)),
        (saved(halves((255, 0, 0, 0), (0, 0, 0, 255), "CMYK"), "TIFF"), (0, 255, 255), (0, 0, 0)),
        (saved(sixteen_bits(), "PNG"), (1, 1, 1), (128, 128, 128)),
        (saved(sixteen_bits(), "TIFF"), (1, 1, 1), (128, 128, 128)),
    ],
)
def test_pixels_of_every_kind_of_file(data: bytes, left: Any, right: Any) -> None:
    assert two(data) == (left, right)


def test_pixels_of_a_jpeg_with_four_inks() -> None:
    data = saved(halves((255, 0, 0, 0), (0, 255, 0, 0), "CMYK"), "JPEG", quality=100)
    for found, meant in zip(two(data), ((0, 255, 255), (255, 0, 255)), strict=True):
        assert max(abs(a - b) for a, b in zip(found, meant, strict=True)) < 12


def turned(orientation: int, kind: str = "PNG") -> bytes:
    """Return a file whose pixels are turned, and whose EXIF data says so."""
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    image = picture(6, 9)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image if back is None else image.transpose(Image.Transpose(back)), kind, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_pictures_are_turned_upright(orientation: int, kind: str) -> None:
    opened = open_picture(turned(orientation, kind), "image0")
    assert opened.size == (6, 9)
    np.testing.assert_array_equal(np.asarray(decoded(opened)), np.asarray(picture(6, 9)))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_orientation_after_the_pixels_and_damaged_exif() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = saved(picture(6, 9), "PNG")
    end = plain[-12:]
    assert open_picture(plain[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + end, "image0").size == (9, 6)
    damaged = saved(picture(6, 9), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    with pytest.warns(UserWarning, match="Corrupt EXIF data"):
        assert decoded(open_picture(damaged, "image0")).size == (9, 6)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "image0 is empty"),
    "text": (lambda: b"<html>404</html>", "image0 is not a picture, or is damaged at its beginning"),
    "eps": (lambda: saved(picture(9, 9), "EPS"), "image0 is not a picture, .*; known are AVIF, BMP"),
    "cut jpeg": (
        lambda: half(saved(picture(90, 90), "JPEG")),
        "image0 cannot be decoded: image file is truncated",
    ),
    "cut png": (
        lambda: half(saved(picture(90, 90), "PNG")),
        "image0 cannot be decoded: image file is truncated",
    ),
    "cut webp": (lambda: half(saved(picture(90, 90), "WEBP")), "image0 cannot be"),
    "cut gif": (
        lambda: half(saved(picture(90, 90), "GIF")),
        "image0 cannot be decoded: image file is truncated",
    ),
    "cut header": (lambda: saved(picture(90, 90), "JPEG")[:20], "image0 (is not a picture|cannot be)"),
    "bad crc": (lambda: saved(picture(90, 90), "PNG")[:-2] + b"xx", ""),
    "32 bits": (
        lambda: saved(Image.fromarray(np.full((8, 8), 7.5, np.float32)), "TIFF"),
        "image0 has 32 bits per pixel, whose range is unknown; save it with 8 bits",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_damaged_files_are_errors_in_words(name: str) -> None:
    make, message = BROKEN[name]
    data = make()
    outcomes = []
    for step in (decoded, check_picture):
        try:
            step(open_picture(data, "image0"))
            outcomes.append("")
        except UnusableSample as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
    if message:
        with pytest.raises(UnusableSample, match=message):
            raise UnusableSample(outcomes[0])


def test_pictures_of_several_frames_are_not_read_as_their_first() -> None:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "TIFF", "PNG"):
        with pytest.raises(UnusableSample, match="has 2 frames; save the one you mean"):
            open_picture(saved(frames[0], kind, save_all=True, append_images=frames[1:]), "one")


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(picture(20, 30), "PNG")
    monkeypatch.setattr(pictures, "MOST_PIXELS", 599)
    with pytest.raises(UnusableSample, match="image0 has 30x20 pixels; the most are 599"):
        open_picture(data, "image0")


@pytest.mark.parametrize("name", VISIONS)
def test_a_picture_of_one_pixel_has_tiles(name: str) -> None:
    assert picture_tiles(picture(1, 1), VISIONS[name]).shape[1:] == (3, SIDE, SIDE)
