"""The data that Megatron's arguments name, per split: prefixes, weights, and the part of each prefix.

The rules are those of megatron-core 0.19.2 (`core/datasets/blended_megatron_dataset_builder.py`), which
checks few of them before the ranks have started.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from flagscale.checks import indexed
from flagscale.checks.facts import identity
from flagscale.errors import Violation

SPLITS = ("train", "valid", "test")
ONE_SET = ("data_path", "data_args_path")
"""Arguments for data that `split` divides."""
SET_PER_SPLIT = ("train_data_path", "valid_data_path", "test_data_path")
LIST_PER_SPLIT = "per_split_data_args_path"
NAMES = (*ONE_SET, *SET_PER_SPLIT, LIST_PER_SPLIT)
READ = (
    *("split", "seq_length", "train_iters", "train_samples", "global_batch_size", "micro_batch_size"),
    *("eval_iters", "eval_interval", "full_validation", "multiple_validation_sets", "dataloader_type"),
    *("phase_transition_iterations", "mock_data"),
)
"""The other arguments (by dest) that these rules read."""
DEFAULT_SPLIT = "969, 30, 1"
_DEFAULT_EVAL_INTERVAL = 1000
_OBJECT_STORAGE = ("s3://", "msc://")


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
        return [cwd / prefix for prefix in self.prefixes if not prefix.startswith(_OBJECT_STORAGE)]

    def sequences(self, prefix: Path) -> tuple[int, int]:
        """Return the range of sequences of a sound prefix that this split reads."""
        count = indexed.summary(prefix).sequences
        begin, end = (round(bound * float(count)) for bound in self.share)
        return begin, end


def named_files(values: Mapping[str, Any], cwd: Path = Path()) -> list[tuple[str, Path]]:
    """Return every (argument, prefix) of data in files, once per argument; skip lists that are not sound."""
    found: dict[tuple[str, Path], None] = {}
    for (argument, _), words in _lists(values, cwd)[0].items():
        with suppress(ValueError):
            found |= dict.fromkeys((argument, file) for file in Blend(argument, "", *parse(words)).files(cwd))
    return list(found)


def content(values: Mapping[str, Any], cwd: Path = Path()) -> str:
    """Return what identifies the content of all files of data, wherever they are; "" if there are none."""
    files = [] if values.get("mock_data") else named_files(values, cwd)
    found = [identity(prefix) for _, prefix in files if not indexed.problems(prefix)]
    return hashlib.sha256(" ".join(found).encode()).hexdigest() if found else ""


def blends(values: Mapping[str, Any], cwd: Path = Path()) -> list[Blend]:
    """Return the blend of every split that the engine builds, if `blend_violations` finds nothing."""
    found = []
    for (argument, split), words in _lists(values, cwd)[0].items():
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
            raise ValueError(f"`{word}` stands in the place of a weight, but is not a number")
    return tuple(words[1::2]), tuple(weight for weight in weights if weight is not None)


def shares(split: str) -> list[tuple[float, float] | None]:
    """Return the part of the data that train, valid and test get; None for a split that gets nothing.

    Raises:
        ValueError: there are not one to three numbers, or all of them are 0.
    """
    try:
        parts = [float(part) for part in re.findall(r"[.0-9]+", split)]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= len(SPLITS) or not sum(parts) or "-" in split:
        raise ValueError(f"`split: {split}` is not one to three numbers of at least 0, such as 98,1,1")
    total, bounds = sum(parts), [0.0]
    for part in (*parts, *[0.0] * (len(SPLITS) - len(parts))):
        bounds.append(bounds[-1] + part / total)
    return [(begin, end) if end > begin else None for begin, end in pairwise(bounds)]


def list_violations(values: Mapping[str, Any], cwd: Path = Path()) -> Iterator[Violation]:
    """Yield each file of a list of data that cannot be read."""
    yield from _lists(values, cwd)[1]


def blend_violations(values: Mapping[str, Any], cwd: Path = Path()) -> Iterator[Violation]:
    """Yield every violation in the lists of data; the data itself is not opened."""
    given = [name for name in NAMES if values.get(name)]
    if len([name for name in given if name in ONE_SET]) > 1:
        yield "data_args_path", "give `data_path` or `data_args_path`, not both"
    per_split = [name for name in given if name not in ONE_SET]
    if LIST_PER_SPLIT in per_split and len(per_split) > 1:
        yield LIST_PER_SPLIT, f"give `{LIST_PER_SPLIT}` or `{per_split[0]}`, not both"
    if per_split and len(per_split) < len(given):
        one = next(name for name in given if name in ONE_SET)
        yield per_split[0], f"the engine would ignore `{per_split[0]}` beside `{one}`: give one of them"
    elif per_split and values.get("split"):
        yield "split", f"`split` divides one set of data and cannot be combined with `{per_split[0]}`"
    elif given == ["data_args_path"] and not values.get("split"):
        yield "split", "`data_args_path` needs `split`, such as 98,1,1: the engine has no default for it"
    if values.get("split") and not per_split:
        try:
            shares(str(values["split"]))
        except ValueError as error:
            yield "split", str(error)
    for (argument, split), words in _lists(values, cwd)[0].items():
        try:
            _, weights = parse(words)
        except ValueError as error:
            yield argument, str(error)
            continue
        for weight in weights or ():
            if not 0 < weight < math.inf:
                yield argument, f"a weight must be a number above 0, not {weight:g}"
        is_whole = values.get("full_validation") and not values.get("multiple_validation_sets")
        if weights and is_whole and (split == "valid" or argument in ONE_SET):
            yield argument, "with `full_validation` validation data cannot have weights: remove them"


def size_violations(values: Mapping[str, Any], cwd: Path = Path()) -> Iterator[Violation]:
    """Yield the splits that the files of data (all sound) cannot fill."""
    for blend in blends(values, cwd):
        empty = False
        for prefix in blend.files(cwd):
            begin, end = blend.sequences(prefix)
            if indexed.tokens_between(prefix, begin, end) == 0:
                empty = True
                yield blend.argument, _empty(blend, prefix, values)
        if not empty and (what := _shortage(blend, values, cwd)):
            yield blend.argument, what


def _empty(blend: Blend, prefix: Path, values: Mapping[str, Any]) -> str:
    count = indexed.summary(prefix).sequences
    split = values.get("split") or f"{DEFAULT_SPLIT} (the default)"
    if blend.argument not in ONE_SET:
        return f"{prefix}: contains no tokens"
    what = f"{prefix}: the {blend.split} split of {split} gets no document of the {count} that it holds"
    return f"{what}; set its share in `split` to 0, or larger"


def _shortage(blend: Blend, values: Mapping[str, Any], cwd: Path) -> str:
    """Return why a blend without weights, which is read only once, is too short; "" if it is long enough."""
    wanted = _wanted_samples(blend.split, values)
    has_sets = blend.split == "valid" and values.get("multiple_validation_sets")
    files = blend.files(cwd)
    is_repeated = blend.weights is not None or len(blend.prefixes) == 1
    if wanted is None or has_sets or is_repeated or len(files) < len(blend.prefixes):
        return ""
    tokens = [indexed.tokens_between(prefix, *blend.sequences(prefix)) for prefix in files]
    found = sum((count - 1) // values["seq_length"] for count in tokens)
    if found >= wanted:
        return ""
    return (
        f"the {blend.split} split has {found:,} samples of {values['seq_length']} tokens, but {wanted:,} are "
        "read: prefixes without weights are read only once; give each a weight (`[1, PREFIX, 1, PREFIX]`) to "
        "repeat them"
    )


def _wanted_samples(split: str, values: Mapping[str, Any]) -> int | None:
    """Return how many samples of a split the job reads at least; None if it reads as many as there are."""
    batch = values.get("global_batch_size") or values.get("micro_batch_size")
    iters, samples = values.get("train_iters"), values.get("train_samples")
    is_single = values.get("dataloader_type") in (None, "single")
    if not (is_single and batch and values.get("seq_length") and (iters or samples)):
        return None
    iters = iters or int(samples or 0) // batch
    if split == "train":
        return None if values.get("phase_transition_iterations") else int(samples or iters * batch)
    if values.get("full_validation"):
        return None
    times = 1
    if split == "valid":
        times += iters // (values.get("eval_interval") or _DEFAULT_EVAL_INTERVAL)
    return int(times * (values.get("eval_iters") or 0) * batch)


def _lists(values: Mapping[str, Any], cwd: Path) -> tuple[dict[tuple[str, str], list[str]], list[Violation]]:
    """Return the words of each list by (argument, split), and the violations in files that hold lists.

    The split of data that `split` divides is "".
    """
    found: dict[tuple[str, str], list[str]] = {}
    wrong: list[Violation] = []
    if words := values.get("data_path"):
        found["data_path", ""] = list(words)
    for split, name in zip(SPLITS, SET_PER_SPLIT, strict=True):
        if words := values.get(name):
            found[name, split] = list(words)
    for name, read in (("data_args_path", _read_words), (LIST_PER_SPLIT, _read_table)):
        if path := values.get(name):
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
    words = path.read_text(encoding="utf-8").split()
    if not words:
        raise ValueError("contains no data prefix")
    return {"": words}


def _read_table(path: Path) -> dict[str, list[str]]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(table, dict) or not all(split in table for split in SPLITS):
        raise ValueError(f"must be a JSON object with the keys {', '.join(SPLITS)}")
    lists = {split: value.split() if isinstance(value, str) else value for split, value in table.items()}
    for split in SPLITS:
        is_list = isinstance(lists[split], list)
        if lists[split] is not None and not (is_list and all(isinstance(one, str) for one in lists[split])):
            raise ValueError(f"the value of {split} is not a list of texts")
    return {split: lists[split] or [] for split in SPLITS}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
