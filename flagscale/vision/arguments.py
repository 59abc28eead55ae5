"""The vision part of a model from a training's arguments. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from flagscale.errors import Problem, UserError, Violation
from flagscale.vision.tiling import Size, Tiling, Vision
from flagscale.vision.tower import TOWERS, Tower

SIZES: Mapping[str, str] = {
    "vision_image_size": "side",
    "vision_patch_size": "patch_size",
    "vision_num_layers": "layers",
    "vision_hidden_size": "hidden",
    "vision_ffn_hidden_size": "ffn",
    "vision_num_attention_heads": "heads",
}
"""Argument -> the field of `Tower` that it replaces, if it is not null."""
OF_PICTURES = (
    *SIZES,
    *("vision_model_type", "image_aspect_ratio", "mm_patch_merge_type", "image_grid_pinpoints"),
    *("several_images", "image_token", "video_token", "video_frames"),
)
"""The arguments (by dest) that describe the vision part; a program that has them all trains with pictures."""
FITS = ("square", "pad")
"""Values of `image_aspect_ratio` without tiling."""
FLAT, UNPAD = "flat", "spatial_unpad"
"""Values of `mm_patch_merge_type`: without and with tiling."""
TILED, SINGLE = "tiled", "single"
"""Values of `several_images`."""
_USUAL = 6
"""The most tiles per side of the default grids, those of LLaVA-OneVision."""
_SHOWN = 60
"""The most characters of a list of grids in a message."""
MOST_TILES = 1024
"""The most tiles of a grid: with a mistyped number, computing them all would take hours."""
_ANYRES = re.compile(r"anyres_max_([1-9]\d*)")
_PAIR = re.compile(r"[(\[]\s*(\d+)\s*,\s*(\d+)\s*[)\]]")
_PAIRS = rf"\s*{_PAIR.pattern}(?:\s*,\s*{_PAIR.pattern})*\s*,?\s*"
_LIST = re.compile(rf"{_PAIRS}|\s*[(\[]{_PAIRS}[)\]]\s*")
_RANGE = re.compile(r"\((\d+)x(\d+)\),\.\.\.,\((\d+)x(\d+)\)")


def vision_of(values: Mapping[str, Any]) -> Vision:
    """Return the vision part that a training's arguments (by dest) describe.

    Raises:
        UserError: with every reason.
    """
    if broken := [*vision_violations(values)]:
        raise UserError(Problem(what, name) for name, what in broken)
    tiling, tower = None, _tower(values)
    if found := _ANYRES.fullmatch(values["image_aspect_ratio"]):
        grids = _grids(values["image_grid_pinpoints"], tower.side)
        tiling = Tiling(grids, int(found[1]), values["several_images"] == TILED)
    return Vision(
        tower=tower,
        tiling=tiling,
        fit=FITS[0] if tiling else values["image_aspect_ratio"],
        image_token=values["image_token"],
        video_token=values["video_token"],
        video_frames=values["video_frames"],
    )


def usual_grids(side: int) -> tuple[Size, ...]:
    """Return the default grids of tiles of this many pixels."""
    return _between((1, 1), (_USUAL, _USUAL), side)


def arguments_of(vision: Vision) -> dict[str, Any]:
    """Return the arguments (by dest) that describe a vision part; null ones have defaults."""
    tower, usual, tiling = vision.tower, TOWERS[vision.tower.kind], vision.tiling
    own = {name: getattr(tower, field) for name, field in SIZES.items()}
    sizes = {name: None if own[name] == getattr(usual, field) else own[name] for name, field in SIZES.items()}
    is_usual = tiling is None or tiling.grids == usual_grids(tower.side)
    return {
        "vision_model_type": tower.kind,
        **sizes,
        "image_aspect_ratio": f"anyres_max_{tiling.max_tiles}" if tiling else vision.fit,
        "mm_patch_merge_type": UNPAD if tiling else FLAT,
        "image_grid_pinpoints": None if is_usual or not tiling else str([*map(list, tiling.grids)]),
        "several_images": SINGLE if tiling and not tiling.tiles_several else TILED,
        "image_token": vision.image_token,
        "video_token": vision.video_token,
        "video_frames": vision.video_frames,
    }


def vision_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield what is wrong with the arguments (by dest) of the vision part alone."""
    for name in (*SIZES, "video_frames"):
        if values[name] is not None and values[name] < 1:
            yield name, f"`{name}: {values[name]}` is not a positive number"
            return
    tower = _tower(values)
    if tower.hidden % tower.heads:
        what = f"the tower's width {tower.hidden} cannot be divided into {tower.heads} attention heads"
        yield "vision_num_attention_heads", what
    if not tower.rows:
        what = f"patches of {tower.patch_size} pixels do not fit into tiles of {tower.side}"
        yield "vision_patch_size", what
    if values["image_token"] == values["video_token"]:
        yield "video_token", "`image_token` and `video_token` are the same"
    yield from _tiling_violations(values, tower)


def _tiling_violations(values: Mapping[str, Any], tower: Tower) -> Iterator[Violation]:
    ratio, merge, pinpoints = (
        values[name] for name in ("image_aspect_ratio", "mm_patch_merge_type", "image_grid_pinpoints")
    )
    is_tiled = bool(_ANYRES.fullmatch(ratio))
    if not is_tiled and ratio not in FITS:
        what = f"`image_aspect_ratio: {ratio}` is not one of {', '.join(FITS)}, anyres_max_N"
        yield "image_aspect_ratio", f"{what} (N: the most tiles, 9 in LLaVA-OneVision)"
        return
    if merge != (UNPAD if is_tiled else FLAT):
        what = f"`image_aspect_ratio: {ratio}` needs `mm_patch_merge_type: {UNPAD if is_tiled else FLAT}`"
        yield "mm_patch_merge_type", what
    if not is_tiled:
        if pinpoints is not None:
            what = "`image_grid_pinpoints` has no effect without `image_aspect_ratio: anyres_max_N`"
            yield "image_grid_pinpoints", what
        if values["several_images"] != TILED:
            what = "`several_images` has no effect without `image_aspect_ratio: anyres_max_N`"
            yield "several_images", what
        return
    side, ends = tower.side, _RANGE.fullmatch(pinpoints or "")
    # Of a range, only the last: those between may be too many to be listed.
    largest = (int(ends[3]) * side, int(ends[4]) * side) if ends else None
    grids = (largest,) if largest else _grids(pinpoints, side)
    has_too_many = any(height * width > MOST_TILES * side**2 for height, width in grids)
    grids = grids if ends and has_too_many else _grids(pinpoints, side)
    shown = pinpoints if len(pinpoints or "") <= _SHOWN else f"{pinpoints[:_SHOWN]}..."
    if not grids or any(one % side or not one for grid in grids for one in grid):
        example = f"[[{side}, {side}], [{side}, {2 * side}]]"
        what = f"`image_grid_pinpoints: {shown}` is not a list of heights and widths in pixels, each a "
        yield "image_grid_pinpoints", f"{what}multiple of {side}, such as {example}"
    elif has_too_many:
        what = f"`image_grid_pinpoints: {shown}` asks for more than {MOST_TILES} tiles per picture"
        yield "image_grid_pinpoints", what


def _tower(values: Mapping[str, Any]) -> Tower:
    own = {field: values[name] for name, field in SIZES.items() if values[name] is not None}
    return replace(TOWERS[values["vision_model_type"]], **own)


def _grids(pinpoints: str | None, side: int) -> tuple[Size, ...]:
    """Return the grids that the text lists, as `[[384, 768], ...]`, or as `(1x1),...,(6x6)`: all between.

    Of any other text, none.
    """
    if pinpoints is None:
        return usual_grids(side)
    ends = _RANGE.fullmatch(pinpoints)
    if ends:
        first, last = (int(ends[1]), int(ends[2])), (int(ends[3]), int(ends[4]))
        return _between(first, last, side)
    pairs = _PAIR.findall(pinpoints) if _LIST.fullmatch(pinpoints) else ()
    return tuple((int(height), int(width)) for height, width in pairs)


def _between(first: Size, last: Size, side: int) -> tuple[Size, ...]:
    rows, columns = (range(first[axis], last[axis] + 1) for axis in (0, 1))
    return tuple((row * side, column * side) for row in rows for column in columns)
