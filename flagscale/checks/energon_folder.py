"""A folder that Megatron-Energon reads: shards of samples, and `.nv-meta`, which `energon prepare` writes.

Energon 7.4.1 reports some of these mistakes only once all ranks have started, in words about its own code.
The forms of its files: `megatron/energon/flavors/webdataset/{metadata,structs}.py`.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from flagscale.errors import first_line

META = ".nv-meta"
MODULE = "megatron.energon"
"""The module of the classes that files may name; any other one would be imported."""
FACTS, UNFINISHED = "facts.json", "unfinished"
"""What `tools/datasets/llava.py` records beside the shards, and its folder until it has finished."""
_INFO, _SPLITS, _SAMPLES = (".info.json", ".info.yaml"), ("split.yaml", "split.json"), "dataset.yaml"
_CRUDE = "CrudeWebdataset"
_TOOL = "tools/datasets/llava.py"
_TOKENISED = ("sequence.pyd", "input_ids.pth", "labels.pth")
"""Files of samples that FlagScale v0.6.0 had tokenised before the training."""
_MOST_SHARDS = 10**6
_OFFSET = 8
"""Bytes of an offset in the index of a shard."""


@dataclass(frozen=True)
class FolderSplit:
    """A split of a folder, as a blend or a key names it."""

    folder: Path
    split: str
    split_config: str = ""


def samples_of(part: FolderSplit) -> int:
    """Return how many samples a sound folder has in a split; a `subset` of them counts as all."""
    counts = _counts(part.folder)
    return sum(counts.get(name, 0) for name in _shards(part))


def content_of(part: FolderSplit) -> list[tuple[str, int]]:
    """Return the shards of a split with their numbers of samples; raise ValueError if it cannot be read."""
    counts = _counts(part.folder)
    return [(name, counts.get(name, 0)) for name in _shards(part)]


def facts_of(part: FolderSplit) -> Mapping[str, Any]:
    """Return what our tool recorded about a split of a folder; empty if it did not make the folder."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((part.folder / FACTS).read_text(encoding="utf-8"))["splits"][part.split]
        if isinstance(found, dict):
            return found
    return {}


def has_samples(part: FolderSplit) -> bool:
    """Return whether a folder has shards in a split, as far as it can be read."""
    with suppress(ValueError):
        return bool(_shards(part))
    return False


def folder_mistakes(part: FolderSplit) -> Iterator[str]:
    """Yield what is wrong with a folder, each with its path."""
    folder, split = part.folder, part.split
    meta = folder / META
    if tokenised := _tokenised(folder):
        what = "its samples were tokenised before the training, as FlagScale v0.6.0 did"
        yield f"{tokenised}: {what}; make the folder again from the pictures, with {_TOOL}"
        return
    if not meta.is_dir():
        yield f"{folder}: {_not_prepared(folder)}"
        return
    missing = [
        names[0]
        for names in (_INFO, _SPLITS, (_SAMPLES,))
        if not any(os.path.isfile(meta / name) for name in names)
    ]
    if missing:
        what = f"not completely prepared: {META} has no {', '.join(missing)}"
        yield f"{folder}: {what}; prepare it again (`energon prepare {folder}`, or {_TOOL})"
        return
    try:
        sample = mapping(meta / _SAMPLES)
        if (sample.get("__module__"), sample.get("__class__")) != (MODULE, _CRUDE):
            named = f"`{sample.get('__class__')}` of `{sample.get('__module__')}`"
            yield (
                f"{meta / _SAMPLES}: samples of {named} are not read; conversations are `{_CRUDE}` of "
                f"`{MODULE}` (`energon prepare --sample-type {_CRUDE}`)"
            )
        counts, shards = _counts(folder), _shards(part)
    except ValueError as error:
        yield str(error)
        return
    if not shards:
        yield f"{folder}: the split `{split}` has no samples"
        return
    unknown = [name for name in shards if name not in counts]
    if unknown:
        yield f"{meta / _INFO[0]}: does not list {_some(unknown)}, which the split `{split}` names"
    lost = [name for name in shards if not os.path.isfile(folder / name)]
    without = [
        f"{name}.idx" for name in shards if name not in lost and not os.path.isfile(folder / f"{name}.idx")
    ]
    if lost or without:
        yield f"{folder}: missing: {_some([*lost, *without])}; prepare it again"
    elif damaged := [
        name for name in shards if name in counts and not _is_whole(folder / name, counts[name])
    ]:
        what = f"{folder}: cut off, or written after it was prepared: {_some(damaged)}"
        yield f"{what}; write the shard again, or prepare the folder again"
    elif not unknown and not any(counts[name] for name in shards):
        yield f"{folder}: the split `{split}` has no samples"


def _is_whole(shard: Path, samples: int) -> bool:
    """Return whether a shard is as long as its index says: an offset per sample, and that of the end."""
    index = Path(f"{shard}.idx")
    try:
        with index.open("rb") as file:
            file.seek(max(0, os.stat(index).st_size - _OFFSET))
            length, end = file.tell() + _OFFSET, int.from_bytes(file.read(), "little")
        return length == _OFFSET * (samples + 1) and os.stat(shard).st_size >= end
    except OSError:
        return False


def _some(names: Sequence[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


def _not_prepared(folder: Path) -> str:
    """Return what a folder without `.nv-meta` holds instead, and what to do."""
    names = sorted(os.listdir(folder))
    if UNFINISHED in names:
        return f"{_TOOL} has not finished it; run the same command again, which continues"
    if any(name.endswith(".tar") for name in names):
        return (
            f"not prepared: no {META}; run `energon prepare {folder} --non-interactive --split-ratio 95,5,0 "
            f"--sample-type {_CRUDE}`"
        )
    below = [name for name in names if os.path.isdir(folder / name / META)]
    if below:
        return f"no Energon folder; did you mean {folder / below[0]}?"
    holds = "empty" if not names else "no Energon folder (no shards and no .nv-meta)"
    return f"{holds}; {_TOOL} makes one of pictures and conversations"


def _tokenised(folder: Path) -> Path | None:
    """Return the first shard if FlagScale v0.6.0 had tokenised its samples."""
    first = next((shard for where in ("*.tar", "*/*.tar") for shard in sorted(folder.glob(where))), None)
    if first is None:
        return None
    with suppress(OSError, tarfile.TarError), tarfile.open(first) as shard:
        for _ in range(4):
            member = shard.next()
            if member is not None and member.name.partition(".")[2] in _TOKENISED:
                return first
    return None


def _counts(folder: Path) -> dict[str, int]:
    """Return the samples of each shard.

    Raises:
        ValueError: the file is not in Energon's form.
    """
    path = next(folder / META / name for name in _INFO if os.path.isfile(folder / META / name))
    counts = mapping(path).get("shard_counts")
    if not isinstance(counts, dict) or not all(type(number) is int for number in counts.values()):
        raise ValueError(f"{path}: no `shard_counts`, the samples of each shard; prepare the folder again")
    return counts


def _shards(part: FolderSplit) -> list[str]:
    """Return the shards of a split, without the excluded ones.

    Raises:
        ValueError: the file is missing, not in Energon's form, or has no such split.
    """
    meta, split = part.folder / META, part.split
    found = (name for name in _SPLITS if os.path.isfile(meta / name))
    path = meta / (part.split_config or next(found, _SPLITS[0]))
    tree = mapping(path)
    parts = tree.get("split_parts")
    if not isinstance(parts, dict):
        raise ValueError(f"{path}: no `split_parts`, the shards of each split; prepare the folder again")
    if split not in parts:
        raise ValueError(f"{path}: no split `{split}`; it has {', '.join(map(str, parts)) or 'none'}")
    listed, excluded = parts[split] or [], tree.get("exclude") or []
    if not all(
        isinstance(one, list) and all(isinstance(name, str) for name in one) for one in (listed, excluded)
    ):
        raise ValueError(f"{path}: `split_parts.{split}` or `exclude` is not a list of names")
    without = {name for pattern in excluded for name in islice(expanded(pattern), _MOST_SHARDS)}
    names = (name for pattern in listed for name in expanded(pattern))
    return [name for name in islice(names, _MOST_SHARDS) if name not in without]


_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")


def expanded(pattern: str) -> Iterator[str]:
    """Yield the names that a pattern with braces stands for: `a-{000..002}.tar`, `{a,b}.tar`."""
    found = _BRACES.search(pattern)
    ends = found and _NUMBERS.fullmatch(found[1])
    if not found or (not ends and "," not in found[1]):
        yield pattern
        return
    middles: Iterable[str] = found[1].split(",")
    if ends:
        width = len(ends[1]) if ends[1].startswith("0") else 0
        middles = (f"{number:0{width}}" for number in range(int(ends[1]), int(ends[2]) + 1))
    for middle in middles:
        yield from expanded(pattern[: found.start()] + middle + pattern[found.end() :])


def mapping(path: Path) -> dict[str, Any]:
    """Return the content of a JSON or YAML file.

    Raises:
        ValueError: it cannot be read, or is no mapping; the text begins with the path.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            tree = json.loads(text)
        else:
            import yaml

            try:
                tree = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            except yaml.YAMLError as error:
                place = getattr(error, "problem_mark", None)
                line = f":{place.line + 1}" if place else ""
                why = getattr(error, "problem", "") or first_line(error)
                raise ValueError(f"{path}{line}: not YAML: {why}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text in UTF-8") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: not a mapping")
    return tree
