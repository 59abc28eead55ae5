"""Draw pictures of coloured shapes and digits, with questions and answers, from a seed.

Each answer can be seen in the picture, and does not follow from the question. The answers to a question are
equally frequent, so a model that does not look at the picture is right no more often than by chance.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 200, 40),
    "purple": (150, 60, 180),
    "orange": (240, 130, 30),
}
SHAPES = ("circle", "square", "triangle")
COUNTS = ("one", "two", "three", "four")
_DARKEST_PAPER, _INK = 215, (30, 30, 30)
# The segments of a digit as on a pocket calculator: top, upper left, upper right, middle, lower left, lower
# right, bottom. A font would look different on each machine.
_SEGMENTS = (
    "1110111",
    "0010010",
    "1011101",
    "1011011",
    "0111010",
    "1101011",
    "1101111",
    "1010010",
    "1111111",
    "1111011",
)
_LINES = (
    ((0, 0), (1, 0)), ((0, 0), (0, 1)), ((1, 0), (1, 1)), ((0, 1), (1, 1)), ((0, 1), (0, 2)),
    ((1, 1), (1, 2)), ((0, 2), (1, 2)),
)  # fmt: skip


class Drawn(NamedTuple):
    """A picture with a question about it and the answer."""

    image: Image
    question: str
    answer: str


def drawn(kind: str, seed: int, turn: int, side: int, *, blank: bool = False) -> Drawn:
    """Return the `turn`-th picture of a kind, of `side` by `side` pixels; the arguments decide every pixel.

    `blank`: nothing is drawn on it; the question and the answer are the same.
    """
    from PIL import Image, ImageDraw

    answers, draw = _KINDS[kind]
    # Every answer once, in any order, then every answer once again: as frequent as the others from the start.
    order = random.Random(f"{kind} {seed} {turn // len(answers)}").sample(answers, len(answers))
    answer = order[turn % len(answers)]
    chance = random.Random(f"{kind} {seed} {turn} drawn")
    paper = tuple(chance.randint(_DARKEST_PAPER, 255) for _ in range(3))
    image = Image.new("RGB", (side, side), paper)
    question = draw(ImageDraw.Draw(image.copy() if blank else image), chance, side, answer)
    return Drawn(image, question, answer)


def _count(draw: ImageDraw, chance: random.Random, side: int, answer: str) -> str:
    """Draw one to four shapes of a kind in some of the quarters of the picture."""
    shape, colour = chance.choice(SHAPES), chance.choice([*COLOURS])
    for quarter in chance.sample(range(4), COUNTS.index(answer) + 1):
        row, column = divmod(quarter, 2)
        _shape(draw, shape, COLOURS[colour], _box(chance, side / 2, side / 2 * column, side / 2 * row))
    return f"How many {shape}s are there?"


def _colour(draw: ImageDraw, chance: random.Random, side: int, answer: str) -> str:
    shape = chance.choice(SHAPES)
    _shape(draw, shape, COLOURS[answer], _box(chance, side, 0, 0))
    return f"What colour is the {shape}?"


def _name(draw: ImageDraw, chance: random.Random, side: int, answer: str) -> str:
    _shape(draw, answer, COLOURS[chance.choice([*COLOURS])], _box(chance, side, 0, 0))
    return "Which shape is this?"


def _digit(draw: ImageDraw, chance: random.Random, side: int, answer: str) -> str:
    height = side * chance.uniform(0.6, 0.8)
    left, top = (side - height / 2) * chance.uniform(0.2, 0.8), (side - height) * chance.uniform(0.2, 0.8)
    for is_on, line in zip(_SEGMENTS[int(answer)], _LINES, strict=True):
        if is_on == "1":
            points = [(left + x * height / 2, top + y * height / 2) for x, y in line]
            draw.line(points, fill=_INK, width=max(1, side // 12))
    return "Which digit is this?"


_KINDS: dict[str, tuple[tuple[str, ...], Callable[[ImageDraw, random.Random, int, str], str]]] = {
    "counts": (COUNTS, _count),
    "colours": (tuple(COLOURS), _colour),
    "shapes": (SHAPES, _name),
    "digits": (tuple("0123456789"), _digit),
}
KINDS = tuple(_KINDS)
"""Of questions."""


def _box(chance: random.Random, room: float, left: float, top: float) -> tuple[float, float, float, float]:
    """Return a square that fills most of a room, anywhere in it."""
    size = room * chance.uniform(0.6, 0.85)
    x, y = (start + (room - size) * chance.uniform(0.1, 0.9) for start in (left, top))
    return x, y, x + size, y + size


def _shape(
    draw: ImageDraw, shape: str, colour: tuple[int, int, int], box: tuple[float, float, float, float]
) -> None:
    left, top, right, _ = box
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "square":
        draw.rectangle(box, fill=colour)
    else:
        low = top + (right - left) * math.sqrt(3) / 2
        draw.polygon([((left + right) / 2, top), (left, low), (right, low)], fill=colour)
