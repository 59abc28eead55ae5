"""The pictures that a batch of Emu3 draws or reads: by keys of `generate`, and of lines of a prompts file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flagscale.checks.emu3 import AREA, Grid, grid_of, too_long
from flagscale.checks.guidance import SCALE, Guidance
from flagscale.checks.message_files import file_violations
from flagscale.checks.prompts import Prompt, read_prompts
from flagscale.errors import Violation, short
from flagscale.files import user_path
from flagscale.frozen import dataclass

IMAGE, UNDERSTAND = "image", "understand"
MODES = (IMAGE, UNDERSTAND)
LISTS: Mapping[str, str] = {"ratios": "ratio", "sizes": "size", "images": "image"}
"""Keys of `generate` that hold one value per prompt, or one for all, and the key of a line instead."""
KEYS: Mapping[str, tuple[str, ...]] = {IMAGE: ("ratios", "sizes"), UNDERSTAND: ("images",)}
"""The keys of `generate` that only one mode reads."""
_SHAPES: Mapping[str, str] = {"ratio": '"16:9"', "size": '"960x544"'}
"""The keys of a line that say how large a picture is, with an example."""
_MARKS = 6
"""The fewest tokens beside the words of a prompt: begin, start of the picture, its size (3), end of that."""


@dataclass(frozen=True)
class Canvas:
    """What is known of a model: the pixels of a picture asked for by its ratio, and its positions."""

    area: int = AREA
    positions: int | None = None
    """None: unknown."""


@dataclass(frozen=True)
class PictureBatch:
    """The keys of `generate` that only Emu3's modes read. A list has one item per prompt, or one for all."""

    mode: str
    ratios: Sequence[str] = ()
    sizes: Sequence[str] = ()
    images: Sequence[str] = ()
    """Files, or addresses (http, https)."""

    def value(self, name: str, place: int) -> str:
        """Return what a list holds for the prompt at a place; "" if the list is empty."""
        values: Sequence[str] = getattr(self, name)
        return values[0 if len(values) == 1 else place] if values else ""


@dataclass(frozen=True)
class Drawing:
    """A prompt that becomes one picture, or several."""

    place: int
    """Of the prompt in the whole batch."""
    prompt: str
    grid: Grid
    guidance: Guidance | None
    """None: scale 1."""
    line: Mapping[str, Any]
    """The object of its line in the prompts file; empty without one."""


def drawing_of(batch: PictureBatch, place: int, prompt: Prompt, canvas: Canvas) -> Drawing:
    """Return what a prompt asks for; raises ValueError if it asks for no picture of whole codes."""
    line = _given(prompt)
    own = next((line[name] for name in _SHAPES if name in line), "")
    shape = own or batch.value("ratios", place) or batch.value("sizes", place)
    return Drawing(place, prompt.text, grid_of(shape, canvas.area), prompt.guidance, prompt.line)


def question_of(batch: PictureBatch, place: int, prompt: Prompt) -> Prompt:
    """Return a prompt about a picture as a chat of one message, with the picture and the text."""
    image = str(prompt.line.get("image") or batch.value("images", place))
    parts = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": prompt.text}]
    line = {"prompt": prompt.text, **prompt.line, "image": image}
    return Prompt(messages=({"role": "user", "content": parts},), line=line)


def batch_violations(batch: PictureBatch, prompts: int | None) -> Iterator[Violation]:
    """Yield which keys are wrong or missing; the keys of a list are its name, or its name and a place.

    `prompts`: their number in the YAML; None for those of a file, whose lines may have sizes and pictures.
    """
    is_file = prompts is None
    if batch.ratios and batch.sizes:
        yield "sizes", "give either `ratios` or `sizes`"
    if not is_file and batch.mode == IMAGE and not (batch.ratios or batch.sizes):
        yield "", f'`mode: {IMAGE}` needs `ratios` (such as "16:9") or `sizes` (pixels, such as 960x544)'
    if not is_file and batch.mode == UNDERSTAND and not batch.images:
        yield "", f"`mode: {UNDERSTAND}` needs `images`: a file per prompt, or one for all"
    for name, of_line in LISTS.items():
        count = len(getattr(batch, name))
        if count > 1 and is_file:
            what = f"`{name}` holds {count} values; give one for all, or `{of_line}` in each line of the file"
            yield name, what
        elif count > 1 and count != prompts:
            number = f"{prompts} prompt{'' if prompts == 1 else 's'}"
            what = f"`{name}` holds {count} values for {number}; give one each, or one for all"
            yield name, what
    yield from item_violations(batch)


def item_violations(batch: PictureBatch) -> Iterator[Violation]:
    """Yield which items of the lists are wrong, whatever the prompts are."""
    for name in ("ratios", "sizes"):
        for number, shape in enumerate(getattr(batch, name)):
            if what := _shape_problem(LISTS[name], shape):
                yield f"{name}.{number}", what
    for number, image in enumerate(batch.images):
        if what := _image_problem(image, Path()):
            yield f"images.{number}", what


def prompt_problems(
    batch: PictureBatch, prompts: Sequence[Prompt], canvas: Canvas, file: Path | None
) -> Iterator[str]:
    """Yield what is wrong with each prompt, with its place; the batch passed `batch_violations`.

    `file`: that of the prompts, to whose folder the pictures in its lines are relative.
    """
    for place, prompt in enumerate(prompts):
        wrong = [*_line_violations(batch, prompt)]
        if not wrong and batch.mode == IMAGE:
            wrong = [*filter(None, [_fit_problem(batch, place, prompt, canvas)])]
        elif not wrong and file and (image := _given(prompt).get("image")):
            wrong = [*filter(None, [_image_problem(image, file.parent)])]
        where = f"{file}:{prompt.number}" if file else f"prompt {place}"
        yield from (f"{where}: {what}" for what in wrong)


def picture_problems(batch: PictureBatch, file: Path | None) -> Iterator[str]:
    """Yield which pictures that a batch reads are missing on this host, or are none."""
    yield from filter(None, (_image_problem(image, Path()) for image in batch.images))
    if batch.mode == UNDERSTAND and file:
        yield from prompt_problems(batch, read_prompts(file)[0], Canvas(), file)


def _line_violations(batch: PictureBatch, prompt: Prompt) -> Iterator[str]:
    if not prompt.text:
        yield f"`mode: {batch.mode}` needs `prompt`, a text"
    line = _given(prompt)
    for name in KEYS[batch.mode]:
        if name in line:
            yield f"`{name}` is a key of the YAML; a line takes `{LISTS[name]}`"
    if batch.mode == UNDERSTAND:
        if prompt.guidance:
            yield f"`{SCALE}` is not supported in questions about pictures"
        if not isinstance(image := line.get("image", ""), str):
            yield f"`image` takes the file of a picture, not {short(image)}"
        elif not image and not batch.images:
            yield "needs `image`, the file of a picture, or `images` in the YAML for all prompts"
        return
    shapes = [name for name in _SHAPES if name in line]
    if len(shapes) > 1:
        yield "give either `ratio` or `size`"
    elif not shapes and not batch.ratios and not batch.sizes:
        yield "needs `ratio` or `size`, or `ratios` or `sizes` in the YAML for all prompts"
    yield from filter(None, (_shape_problem(name, line[name]) for name in shapes))


def _fit_problem(batch: PictureBatch, place: int, prompt: Prompt, canvas: Canvas) -> str:
    """Return why a picture cannot fit, however its prompt is tokenized: a word takes at least one token."""
    try:
        drawing = drawing_of(batch, place, prompt, canvas)
    except ValueError as error:  # for this area, a ratio is too long
        return str(error)
    if canvas.positions is None:
        return ""
    negative = drawing.guidance.negative if drawing.guidance else ""
    least = len(negative.split()) + _MARKS if isinstance(negative, str) else len(negative)
    return too_long(drawing.grid, max(len(drawing.prompt.split()) + _MARKS, least), canvas.positions)


def _given(prompt: Prompt) -> dict[str, Any]:
    return {key: value for key, value in prompt.line.items() if value is not None}


def _shape_problem(name: str, shape: Any) -> str:
    """Return what is wrong with a `ratio` or a `size`; "" if it names a picture."""
    if not isinstance(shape, str) or (":" in shape) != (name == "ratio"):
        return f"`{name}` takes a text such as {_SHAPES[name]}, not {short(shape)}"
    try:
        grid_of(shape)
    except ValueError as error:
        return str(error)
    return ""


def _image_problem(image: str, folder: Path) -> str:
    """Return why a file (relative to `folder`) or an address is no picture to read; "" if it may be one."""
    question = question_of(PictureBatch(UNDERSTAND), 0, Prompt("?", line={"image": image}))
    for what in file_violations(question.messages, folder):
        return what
    if is_address(image):
        return ""
    try:
        with (folder / user_path(image)).open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        return f"the image {image}: {error.strerror}"
    if any(head[at : at + len(mark)] == mark for at, mark in _SIGNATURES):
        return ""
    return f"the image {image}: not a picture (PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF)"


def is_address(image: str) -> bool:
    """Return whether a picture is named by a URL rather than by the path of a file."""
    return "://" in image or image.startswith("data:")


_SIGNATURES = (
    *((0, mark) for mark in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")),
    (8, b"WEBP"),
    (4, b"ftypavif"),
)
_HEAD = 16
"""Bytes that hold every signature."""
