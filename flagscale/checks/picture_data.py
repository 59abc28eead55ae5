"""The data and the tokenizer of a training with pictures: folders, blends, and the token of a picture."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flagscale.checks import tokenizer
from flagscale.checks.energon_blend import has_split, read_data
from flagscale.checks.energon_folder import FolderSplit, facts_of, samples_of
from flagscale.checks.loading import RANKS, too_few
from flagscale.checks.vocabulary import tokenizer_folder
from flagscale.errors import UserError, Violation, nearest
from flagscale.vision.arguments import FITS, OF_PICTURES, vision_of, vision_violations
from flagscale.vision.tiling import Vision, image_tokens, most_image_tokens

TEMPLATES = ("chatml", "vicuna")
"""The values of `chat_template` that are no files (`megatron/flagscale/chat/`)."""
DATA = ("data_path", "valid_path")
READ = (
    *(*DATA, "seq_length", "eval_iters", "num_workers", "chat_template", "max_skipped_samples", RANKS),
    *OF_PICTURES,
)
"""The arguments (by dest) that the rules about data and tokenizer read."""


def picture_remarks(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield what is allowed, but deserves a notice: no evaluation, pictures that are too large."""
    paths = map(Path, values.get("data_path") or ())
    if (
        values.get("eval_iters")
        and not values.get("valid_path")
        and not any(has_split(one, "val") for one in paths)
    ):
        yield "eval_iters", "has no effect: the data has no split `val`, and there is no `valid_path`"
    if next(vision_violations(values), None) or not isinstance(length := values.get("seq_length"), int):
        return
    most = most_image_tokens(vision_of(values))
    if most >= length and not _has_facts(values):
        what = f"a large picture becomes up to {most} tokens"
        yield "seq_length", f"{what}; samples of more than {length} tokens are skipped and counted"


def picture_data_violations(values: Mapping[str, Any], cwd: Path = Path()) -> Iterator[Violation]:
    """Yield what is wrong with the data and tokenizer that arguments (by dest) name, relative to `cwd`."""
    yield from _tokenizer_violations(values, cwd)
    if not values.get("data_path"):
        yield "data_path", "no data: give `data_path`, an Energon folder or a blend (tools/datasets/llava.py)"
        return
    if (number := len(values["data_path"])) > 1:
        what = "several folders need a blend, a YAML file with their weights"
        yield "data_path", f"`data_path` has {number} values, but takes one path: {what}"
        return
    remote = [(name, path) for name in DATA for path in values.get(name) or () if "://" in path]
    for name, path in remote:
        yield name, f"{path}: data in object storage is not supported; name a folder"
    if remote:
        return
    for name, path, split in _named(values, cwd):
        reading = read_data(path, split)
        yield from ((name, what) for what in reading.wrong)
        if not reading.wrong:
            yield from _content_violations(values, name, path, split, reading.parts)


def _named(values: Mapping[str, Any], cwd: Path) -> Iterator[tuple[str, Path, str]]:
    """Yield (argument, path, split) of all data that a training reads."""
    paths = [str(cwd / path) for path in values.get("data_path") or ()]
    yield from (("data_path", Path(path), "train") for path in paths)
    if not values.get("eval_iters"):
        return
    own = values.get("valid_path")
    for path in own or ():
        yield "valid_path", cwd / path, "val"
    if not own:
        yield from (("data_path", Path(path), "val") for path in paths if has_split(Path(path), "val"))


def _content_violations(
    values: Mapping[str, Any], name: str, path: Path, split: str, parts: Iterable[FolderSplit]
) -> Iterator[Violation]:
    parts = list(parts)
    ranks, workers = values.get(RANKS), values.get("num_workers") or 0
    if ranks and (what := too_few(sum(map(samples_of, parts)), ranks, workers if split == "train" else None)):
        yield name, f"{path}: the split `{split}` has {what}"
    length = values.get("seq_length")
    if not isinstance(length, int) or next(vision_violations(values), None):
        return
    vision = vision_of(values)
    for part in dict.fromkeys(parts):
        tokens, size = _largest(facts_of(part), vision)
        if tokens >= length and values.get("max_skipped_samples") is None:
            shape = f"{size[0]} x {size[1]} pixels"
            what = f"{part.folder}: a picture of {shape} becomes {tokens} tokens, too many for seq_length"
            how = "raise it, allow fewer tiles" if vision.tiling else "raise it"
            yield "seq_length", f"{what} {length}: {how}, or set max_skipped_samples to skip such samples"


def _largest(facts: Mapping[str, Any], vision: Vision) -> tuple[int, tuple[int, int]]:
    """Return the most tokens of a picture in a folder, and its height and width; 0 if no facts list them."""
    sizes = facts.get("sizes") or ()
    found = [
        (image_tokens((int(height), int(width)), vision), (int(height), int(width)))
        for height, width in sizes
    ]
    return max(found, default=(0, (0, 0)))


def _has_facts(values: Mapping[str, Any]) -> bool:
    """Return whether the sizes of all pictures are known here, so that they need not be guessed."""
    named = list(_named(values, Path()))
    readings = [read_data(path, split) for _, path, split in named]
    return bool(named) and all(
        not reading.wrong and all(facts_of(part).get("sizes") is not None for part in reading.parts)
        for reading in readings
    )


def _tokenizer_violations(values: Mapping[str, Any], cwd: Path) -> Iterator[Violation]:
    template, folder = values.get("chat_template"), tokenizer_folder(values, cwd)
    if template is not None and template not in TEMPLATES and not os.path.isfile(cwd / template):
        what = f"`chat_template: {template}` is neither a file nor one of {', '.join(TEMPLATES)}"
        hint = nearest(template, TEMPLATES)
        yield "chat_template", f"{what}; {hint}" if hint.startswith("did") else what
    if folder is None:
        return  # missing, which is reported, or on a hub
    tokens = {"image_token": "picture"}
    if values["image_aspect_ratio"] not in FITS:  # with tiles, a model knows videos too
        tokens["video_token"] = "video"
    try:
        if template is None and not tokenizer.has_chat_template(folder):
            what = f"{folder} has no chat template: set `chat_template`"
            yield "chat_template", f"{what} to one of {', '.join(TEMPLATES)}, or to a Jinja file"
        for name, kind in tokens.items():
            if tokenizer.lacks(folder, [token := values[name]]):
                what = (
                    f"{folder} has no token {token!r}, which stands for a {kind}: name another token, or let"
                )
                yield name, f"{what} tools/checkpoint/convert.py add it"
    except UserError as error:
        yield "tokenizer_model", "; ".join(problem.what for problem in error.problems)
