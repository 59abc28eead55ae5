"""The data that Megatron's arguments name, per split: prefixes, weights, and the part of each prefix.

Lists and splits are read as megatron-core 0.19.2 does (`core/datasets/utils.py`, `training/utils`).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from flagscale.checks import indexed
from flagscale.checks.energon_blend import blend_content
from flagscale.checks.facts import identity
from flagscale.checks.mask_files import masks_to_read
from flagscale.checks.pictures import has_pictures
from flagscale.errors import Violation
from flagscale.files import read_regular_text

SPLITS = ("train", "valid", "test")
ONE_SET = ("data_path", "data_args_path")
"""Arguments for data that `split` divides."""
SET_PER_SPLIT = ("train_data_path", "valid_data_path", "test_data_path")
LIST_PER_SPLIT = "per_split_data_args_path"
TRAINING = (*ONE_SET, "train_data_path", LIST_PER_SPLIT)
"""Arguments that name the data of the training itself."""
NAMES = (*ONE_SET, *SET_PER_SPLIT, LIST_PER_SPLIT)
DEFAULT_SPLIT = "969, 30, 1"
OBJECT_STORAGE = ("s3://", "msc://")
"""How prefixes begin that are not files."""


@dataclass(frozen=True)
class Blend:
    """The data of one split."""

    argument: str
    """The argument (dest) that names it."""
    split: str
    prefixes: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    """None: every prefix is read once, unless it is the only one."""
    share: tuple[float, float] = (0.0, 1.0)
    """The part of every prefix that this split reads."""

    def files(self, cwd: Path) -> list[Path]:
        """Return the prefixes that are files, relative to `cwd`; those in object storage are not."""
        return [cwd / prefix for prefix in self.prefixes if not prefix.startswith(OBJECT_STORAGE)]

    def sequences(self, prefix: Path) -> tuple[int, int]:
        """Return the range of sequences of a sound prefix that this split reads."""
        count = indexed.summary(prefix).sequences
        begin, end = (round(bound * float(count)) for bound in self.share)
        return begin, end


def named_files(values: Mapping[str, Any], cwd: Path = Path()) -> list[tuple[str, Path]]:
    """Return every (argument, prefix) of data in files, once per argument; skip lists that are not sound."""
    found: dict[tuple[str, Path], None] = {}
    for (argument, _), words in read_lists(values, cwd)[0].items():
        with suppress(ValueError):
            found |= dict.fromkeys((argument, file) for file in Blend(argument, "", *parse(words)).files(cwd))
    return list(found)


def content(values: Mapping[str, Any], cwd: Path = Path(), *, only_train: bool = False) -> str:
    """Return what identifies the content of all files of data, wherever they are.

    It is "" without files, and if a file is missing here. Loss masks that the training reads belong to it.
    `only_train` leaves out the data of other splits.
    """
    if has_pictures(values):
        return " ".join(blend_content(cwd / path, "train") for path in values.get("data_path") or ())
    found: list[str] = []
    lists = {} if values.get("mock_data") else read_lists(values, cwd)[0]
    for (argument, split), words in lists.items():
        if only_train and split not in ("", "train"):
            continue
        with suppress(ValueError):
            for prefix in Blend(argument, split, *parse(words)).files(cwd):
                masks = masks_to_read(values, prefix)
                pairs = [prefix] if masks is None else [prefix, masks]
                if any(indexed.problems(pair) for pair in pairs):
                    return ""
                found += map(identity, pairs)
    return hashlib.sha256(" ".join(found).encode()).hexdigest() if found else ""


def blends(values: Mapping[str, Any], cwd: Path = Path()) -> list[Blend]:
    """Return the blend of every split that the engine builds, if the lists of data have no violations."""
    found = []
    for (argument, split), words in read_lists(values, cwd)[0].items():
        prefixes, weights = parse(words)
        if argument not in ONE_SET:
            found.append(Blend(argument, split, prefixes, weights))
            continue
        for each, share in zip(SPLITS, shares(str(values.get("split") or DEFAULT_SPLIT)), strict=True):
            if share:
                found.append(Blend(argument, each, prefixes, weights, share))
    return found


def parse(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
    """Return the prefixes and weights of `[prefix ...]` or `[weight prefix weight prefix ...]`.

    Raises:
        ValueError: only some of the weights are numbers.
    """
    words = [word.strip() for word in words]
    if len(words) % 2:
        return tuple(words), None
    weights = [_number(word) for word in words[::2]]
    if all(weight is None for weight in weights):
        return tuple(words), None
    for word, weight in zip(words[::2], weights, strict=True):
        if weight is None:
            raise ValueError(f"`{word}` is in the place of a weight, but is not a number")
    return tuple(words[1::2]), tuple(weight for weight in weights if weight is not None)


def shares(split: str) -> list[tuple[float, float] | None]:
    """Return the part of the data that train, valid and test get; None for a split that gets nothing.

    Raises:
        ValueError: there are not one to three numbers, or all of them are 0.
    """
    try:
        # The engine takes every group of digits, whatever stands between them.
        parts = [float(part) for part in re.split(r"\s*[,:/;\s]\s*", split.strip())]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= len(SPLITS) or not sum(parts) > 0 or min(parts) < 0 or math.isinf(sum(parts)):
        raise ValueError(f"`split: {split}` is not one to three numbers of at least 0, such as 98,1,1")
    total, bounds = sum(parts), [0.0]
    for part in (*parts, *[0.0] * (len(SPLITS) - len(parts))):
        bounds.append(bounds[-1] + part / total)
    return [(begin, end) if end > begin else None for begin, end in pairwise(bounds)]


def read_lists(
    values: Mapping[str, Any], cwd: Path
) -> tuple[dict[tuple[str, str], list[str]], list[Violation]]:
    """Return the words of each list by (argument, split), and the violations in files that hold lists.

    The split of data that `split` divides is "". A training with pictures has no such lists.
    """
    found: dict[tuple[str, str], list[str]] = {}
    wrong: list[Violation] = []
    if has_pictures(values):
        return found, wrong
    if words := values.get("data_path"):
        found["data_path", ""] = list(words)
    for split, name in zip(SPLITS, SET_PER_SPLIT, strict=True):
        if words := values.get(name):
            found[name, split] = list(words)
    for name, read in (("data_args_path", _read_words), (LIST_PER_SPLIT, _read_table)):
        path = values.get(name)
        if path and not path.startswith(OBJECT_STORAGE):
            try:
                for split, words in read(cwd / path).items():
                    if words:
                        found[name, split] = words
            except FileNotFoundError:
                wrong.append((name, f"{path}: no such file"))
            except OSError as error:
                wrong.append((name, f"{path}: {error.strerror}"))
            except ValueError as error:
                wrong.append((name, f"{path}: {error}"))
    return found, wrong


def _read_words(path: Path) -> dict[str, list[str]]:
    words = read_regular_text(path).split()
    if not words:
        raise ValueError("contains no data prefix")
    return {"": words}


def _read_table(path: Path) -> dict[str, list[str]]:
    try:
        table = json.loads(read_regular_text(path))
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(table, dict) or not all(split in table for split in SPLITS):
        raise ValueError(f"must be a JSON object with the keys {', '.join(SPLITS)}")
    lists = {split: value.split() if isinstance(value, str) else value for split, value in table.items()}
    for split in SPLITS:
        is_list = isinstance(lists[split], list)
        if lists[split] is not None and not (is_list and all(isinstance(one, str) for one in lists[split])):
            raise ValueError(f"the value of {split} is not a list of strings")
        if lists[split] is not None and not lists[split]:
            raise ValueError(f"the list of {split} is empty: write null instead")
    return {split: lists[split] or [] for split in SPLITS}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
