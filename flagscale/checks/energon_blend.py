"""A blend of folders that Megatron-Energon reads (a metadataset): a YAML file that names them, with weights.

Of a misspelt `weight`, Energon 7.4.1 says that `join` is missing. The forms of its files:
`megatron/energon/metadataset/{metadataset,metadataset_v2}.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from flagscale.checks.energon_folder import (
    MODULE,
    FolderSplit,
    content_of,
    folder_mistakes,
    has_samples,
    mapping,
)
from flagscale.errors import nearest
from flagscale.formats import count

_NEW, _OLD = "MetadatasetV2", "Metadataset"
_LISTS = {
    "blend": (_NEW, "weight"),
    "blend_epochized": (_NEW, "repetitions"),
    "datasets": (_OLD, "weight"),
}
"""The lists of a split, each with its class, and with the key that says how often an entry is read."""
_KEYS = ("path", "split_part", "subflavors", "shuffle_over_epochs_multiplier", "split_config", "subset")
_REFUSED = ("aux", "join", "joiner", "nonmatch", "dataset_config")
"""Keys of Energon's for samples that are made of several: ours are whole."""
_MOST_NESTED = 8


@dataclass
class Reading:
    """What was found in a folder or blend: its parts, and what is wrong, each with its path."""

    parts: list[FolderSplit]
    wrong: list[str]


def read_data(path: Path, split: str) -> Reading:
    """Return the folders that a folder or blend stands for, and all mistakes in them."""
    reading = Reading([], [])
    _follow(path, split, reading, ())
    for part in dict.fromkeys(reading.parts):
        reading.wrong += folder_mistakes(part)
    return reading


def blend_content(path: Path, split: str) -> str:
    """Return what identifies the order of the samples of a folder or blend, wherever it is; "" if unsound.

    Samples that keep their places may have been corrected: a run continues with them.
    """
    reading = read_data(path, split)
    if reading.wrong:
        return ""
    weights = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = [weights, *(content_of(part) for part in reading.parts)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def has_split(path: Path, split: str) -> bool:
    """Return whether a folder or blend has samples in a split, as far as it can be read."""
    if not path.is_file():
        return has_samples(FolderSplit(path, split))
    try:
        splits = mapping(path).get("splits")
    except ValueError:
        return False
    return isinstance(splits, dict) and split in splits


def too_few(samples: int, ranks: int, workers: int | None) -> str:
    """Return that some readers of a split would have nothing to read; "" if all have.

    `workers` is None in an evaluation: of a rank's workers, some may have nothing to read.
    """
    readers = ranks * max(1, workers or 0)
    if samples >= readers:
        return ""
    if workers is None:
        how = "hold out more, or set eval_iters 0"
        return f"{count(samples, 'sample')} for {ranks} data parallel ranks: each needs one; {how}"
    who = f"data parallel size {ranks}, num_workers {workers}"
    return f"{count(samples, 'sample')} for {readers} readers ({who}): each needs one; use fewer readers"


def _follow(path: Path, split: str, reading: Reading, above: tuple[Path, ...]) -> None:
    if path.is_dir():
        reading.parts.append(FolderSplit(path, split))
    elif not path.exists():
        reading.wrong.append(f"{path}: no such Energon folder, or blend of several (a YAML file)")
    elif path.suffix != ".yaml":
        what = "a blend is a file whose name ends in .yaml, and other data is a folder"
        hint = f"; name the folder, {path.parent}" if path.suffix == ".tar" else ""
        reading.wrong.append(f"{path}: {what}{hint}")
    elif path in above or len(above) > _MOST_NESTED:
        reading.wrong.append(f"{path}: this blend contains itself")
    else:
        _follow_blend(path, split, reading, (*above, path))


def _follow_blend(path: Path, split: str, reading: Reading, above: tuple[Path, ...]) -> None:
    try:
        tree = mapping(path)
    except ValueError as error:
        reading.wrong.append(str(error))
        return
    kind, module = tree.get("__class__", _OLD), tree.get("__module__", MODULE)
    if module != MODULE or kind not in (_OLD, _NEW):
        reading.wrong.append(f"{path}: `{module}.{kind}` is not a blend; valid: {MODULE}.{_NEW}")
        return
    splits = tree.get("splits")
    if not isinstance(splits, dict) or not isinstance(splits.get(split), dict):
        has = ", ".join(map(str, splits)) if isinstance(splits, dict) else ""
        reading.wrong.append(f"{path}: no split `{split}`; it has {has or 'none'}")
        return
    node, at = splits[split], f"splits.{split}"
    lists = {name: share for name, (of, share) in _LISTS.items() if of == kind}
    name = next(filter(node.__contains__, lists), "")
    if not name and kind == _NEW and "path" in node:
        _follow_entry(path, split, node, at, "", reading, above)
        return
    if not name:
        valid = (*lists, *["path"] * (kind == _NEW))
        hint = (
            _meant(node, valid)
            if kind == _NEW
            else f"; `blend` needs `__module__: {MODULE}` and `__class__: {_NEW}`"
        )
        reading.wrong.append(f"{path}: {at} needs one of {', '.join(f'`{one}`' for one in valid)}{hint}")
        return
    for key in [key for key in node if key not in (name, "subset")]:
        reading.wrong.append(f"{path}: {at}: unknown key `{key}`")
    entries = node[name]
    if not isinstance(entries, list) or not entries:
        what = f"{at}.{name} is not a list of data, each with `path` and `{lists[name]}`"
        reading.wrong.append(f"{path}: {what}")
        return
    for number, entry in enumerate(entries):
        _follow_entry(path, split, entry, f"{at}.{name}[{number}]", lists[name], reading, above)


def _follow_entry(
    file: Path, split: str, entry: Any, at: str, share: str, reading: Reading, above: tuple[Path, ...]
) -> None:
    """Follow one entry of a blend; `share` names the key that says how often it is read."""
    if not isinstance(entry, dict):
        reading.wrong.append(f"{file}: {at} is not a mapping with `path`")
        return
    known = (*_KEYS, *filter(None, [share]))
    for key in entry:
        if key in _REFUSED:
            reading.wrong.append(f"{file}: {at}: `{key}` is not supported: each sample is whole")
        elif key not in known:
            reading.wrong.append(f"{file}: {at}: unknown key `{key}`; {nearest(str(key), known)}")
    value = entry.get(share, 1)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < inf:
        reading.wrong.append(f"{file}: {at}: `{share}: {value}` is not a number above 0")
    path, named = entry.get("path"), entry.get("split_part", split)
    if not isinstance(path, str) or not isinstance(named, str):
        wrong = "path" if not isinstance(path, str) else "split_part"
        reading.wrong.append(f"{file}: {at}: `{wrong}` is missing or not a text")
        return
    begun = len(reading.parts)
    _follow(file.parent / path, named, reading, above)
    if (config := str(entry.get("split_config") or "")) and len(reading.parts) == begun + 1:
        reading.parts[begun] = FolderSplit(reading.parts[begun].folder, named, config)


def _meant(node: Mapping[str, Any], valid: Sequence[str]) -> str:
    """Return a hint about the first key that is not valid; "" if there is none."""
    wrong = next((str(key) for key in node if key not in valid), None)
    return f"; `{wrong}`: {nearest(wrong, valid)}" if wrong else ""
