"""Sizes of Emu3's pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from flagscale.checks.emu3 import Grid, grid_of, image_area, too_long
from flagscale.checks.picture_prompts import PictureBatch, batch_violations

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("ratio", "height", "width", "tokens"),
    [
        ("1:1", 90, 90, 8193),
        ("16:9", 68, 120, 8231),
        ("9:16", 120, 68, 8283),
        ("4:3", 78, 104, 8193),
        ("3:4", 104, 78, 8219),
        ("3:2", 73, 110, 8106),
        ("2:3", 110, 73, 8143),
        ("21:9", 59, 137, 8145),
        ("8100:1", 1, 8100, 8104),
    ],
)
def test_a_ratio_becomes_a_grid(ratio: str, height: int, width: int, tokens: int) -> None:
    grid = grid_of(ratio)
    assert grid == Grid(height, width)
    assert grid.tokens == tokens


def test_a_size_names_the_width_first() -> None:
    assert grid_of("1280x720") == Grid(90, 160)
    assert Grid(90, 160).size == "1280x720"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("1000x700", "size `1000x700`: both sides must be multiples of 8 pixels, such as `1000x704`"),
        ("3x720", "size `3x720`: both sides must be multiples of 8 pixels, such as `8x720`"),
        ("0x720", "size `0x720`: both sides must be multiples of 8 pixels, such as `8x720`"),
        ("16:0", "ratio `16:0`: both numbers must be at least 1"),
        (
            "1:40000",
            "ratio `1:40000` leaves less than 8 pixels for one side of a picture of 518400 pixels; "
            "use a ratio between 8100:1 and 1:8100",
        ),
        *(
            (asked, f"`{asked}` is neither a ratio like `16:9` nor a size in pixels like `960x544`")
            for asked in ("", "16/9", "1.5:1", "-1:1", "720", "720X720", "16:9 ", "1" * 5000 + ":1")
        ),
    ],
)
def test_what_is_no_picture_is_refused(asked: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        grid_of(asked)


def test_a_picture_has_to_fit_the_model_with_its_prompt() -> None:
    square = grid_of("1:1")
    assert too_long(square, 9216 - 8193, 9216) == ""
    assert too_long(square, 9216 - 8193 + 1, 9216) == (
        "a picture of 720x720 pixels takes 8193 tokens, and with 1024 of its prompt it does not fit the "
        "model's 9216 positions; the largest of this ratio is 712x712"
    )
    assert too_long(square, 9210, 9216).endswith("the largest of this ratio is 8x8")
    assert too_long(square, 9212, 9216).endswith("; shorten the prompt")


@pytest.mark.parametrize("asked", ["1280x720", "720x1280", "4096x8", "8x4096", "40000x40000"])
def test_the_size_that_a_message_names_fits(asked: str) -> None:
    message = too_long(grid_of(asked), 40, 500)
    named = grid_of(message.rpartition(" ")[2])
    assert too_long(named, 40, 500) == ""


def test_the_area_comes_from_the_image_processor() -> None:
    assert image_area({}) == 518_400
    assert image_area({"image_area": 3072}) == 3072
    for wrong in (0, 63, "720", 1.5, None, True):
        with pytest.raises(ValueError, match="`image_area` takes a whole number of at least 64 pixels"):
            image_area({"image_area": wrong})


def _shown_to_users() -> Iterator[str]:
    """Yield the texts that name a size to try."""
    page = (ROOT / "docs/guidance.md").read_text()
    yield from (line for line in page.splitlines() if line.startswith(("    ", "| `size` |")))
    yield (ROOT / "examples/emu3/conf/inference/emu3_gen.yaml").read_text()
    yield (ROOT / "tools/ask.py").read_text()
    yield from (what for _, what in batch_violations(PictureBatch("image", ratios=("1:1", "x")), 2))
    yield from (what for _, what in batch_violations(PictureBatch("image"), 1))


def test_sizes_that_users_are_shown_fit_emu3() -> None:
    sizes = {size for text in _shown_to_users() for size in re.findall(r"\b\d+x\d+\b", text)}
    assert sizes
    assert [size for size in sizes if too_long(grid_of(size), 40, 9216)] == []
