"""Whether a model folder is an Emu3 that draws and reads pictures, and the way to one if it is not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flagscale.checks.emu3 import AREA, FACTOR, image_area
from flagscale.checks.emu3_vocabulary import vocabulary_of
from flagscale.checks.model_folder import read_config
from flagscale.errors import Violation, short

PUBLISHED: Mapping[str, str] = {
    "BAAI/Emu3-Gen": "BAAI/Emu3-Gen-hf",
    "BAAI/Emu3-Chat": "BAAI/Emu3-Chat-hf",
}
"""Names on the hub: of BAAI's original models, and of the same in the form of transformers.

transformers names both converted ones: `BAAI/Emu3-Chat-hf` in modeling_emu3.py (5.19), `BAAI/Emu3-Gen-hf` in
its tests.
"""
STAGE1 = "BAAI/Emu3-Stage1"
"""An original model that is not published in the form of transformers."""
TOWER = "BAAI/Emu3-VisionTokenizer"
_CONVERT = "convert it with tools/emu3/convert.py, with the folder of Emu3-VisionTokenizer as --tower"
_TOWER_KIND, _ORIGINAL_KIND = _ORIGINALS = ("Emu3VisionVQ", "Emu3")
"""The `model_type` of BAAI's original folders."""
_CODES, _LEVELS, _POSITIONS = 32768, (1, 2, 2, 4), 9216
"""What transformers 5 takes if `config.json` does not name them (configuration_emu3.py)."""
_UNDIVIDED: Mapping[str, str] = {
    # vLLM 0.32 on CPU: `1 is not divisible by 2`, and the second stage fails.
    "tensor_parallel_size": "the part for pictures has one attention head, which vLLM cannot divide",
    "pipeline_parallel_size": "vLLM cannot divide the model into stages",
}
"""Argument of the engine that must be 1 -> the reason."""
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")


def is_emu3(config: Mapping[str, Any]) -> bool:
    """Return whether a `config.json` is that of an Emu3 in the form of transformers."""
    return config.get("model_type") == "emu3"


def name_problem(name: str) -> str:
    """Return why a name on the hub is not an Emu3 in the form of transformers; "" if it may be one."""
    if name in PUBLISHED:
        return f"{name} runs code of its own, which is not supported; use {PUBLISHED[name]}, or {_CONVERT}"
    if name == STAGE1:
        return f"{name} runs code of its own, which is not supported; {_CONVERT}"
    if name == TOWER:
        return f"{name} is only the part that reads pictures; name {PUBLISHED['BAAI/Emu3-Gen']}"
    return ""


def division_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield the parallel degrees, among the arguments of an engine, that Emu3 cannot have."""
    for name, why in _UNDIVIDED.items():
        if (degree := values.get(name) or 1) != 1:
            yield name, f"`{name}` {degree} is not supported with Emu3: {why}; use 1"


def original_problem(folder: Path, config: Mapping[str, Any]) -> str:
    """Return why a folder with this `config.json` is an original one of BAAI, and what to do; "" if not."""
    return f"{folder}: {_other(config)}" if config.get("model_type") in _ORIGINALS else ""


def folder_problem(folder: Path) -> str:
    """Return why a folder is not an Emu3 that draws and reads pictures, and what to do; "" if it is one."""
    try:
        config = read_config(folder)
        if not is_emu3(config):
            return f"{folder}: {_other(config)}"
        tower = _group(config, "vq_config")
        vocabulary_of(_group(config, "vocabulary_map"), _count(tower, "codebook_size", _CODES))
        levels = tower.get("channel_multiplier", _LEVELS)
        if not isinstance(levels, Sequence) or isinstance(levels, str):
            return f"{folder}: `channel_multiplier` takes a list of numbers, not {short(levels)}"
        # Each level of the picture's encoder but the last one halves both sides.
        if (factor := 2 ** (len(levels) - 1)) != FACTOR:
            return f"{folder}: a code stands for {factor} x {factor} pixels, not {FACTOR} x {FACTOR}"
        area_of(folder)
        positions_of(config)
    except ValueError as error:
        place = "" if str(error).startswith(str(folder)) else f"{folder}: "
        return f"{place}{error}"
    return ""


def area_of(folder: Path) -> int:
    """Return the pixels of a picture that is asked for by its ratio (`image_area` of the image processor).

    Raises:
        ValueError: a file cannot be read, or the value is not a number of pixels.
    """
    for path in (folder / name for name in _PROCESSORS):
        if path.is_file():
            try:
                read = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ValueError(f"{path}: cannot be read ({error})") from None
            if not isinstance(read, dict):
                raise ValueError(f"{path}: not a JSON object")
            # transformers 5 writes one file for all processors; before, the image processor had its own.
            return image_area(_group(read, "image_processor") or read)
    return AREA


def positions_of(config: Mapping[str, Any]) -> int:
    """Return how many tokens the model of a `config.json` can hold.

    Raises:
        ValueError: the number of positions cannot be read.
    """
    return _count(_group(config, "text_config"), "max_position_embeddings", _POSITIONS)


def _group(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the object at a key, which is empty if absent or null; raises ValueError if it is no object."""
    group = config.get(name)
    if group is None or isinstance(group, Mapping):
        return group or {}
    raise ValueError(f"`{name}` takes an object of keys, not {short(group)}")


def _count(group: Mapping[str, Any], name: str, default: int) -> int:
    """Return the whole number of at least 1 at a key; raises ValueError for another value."""
    value = group.get(name, default)
    if type(value) is int and value >= 1:
        return value
    raise ValueError(f"`{name}` takes a whole number of at least 1, not {short(value)}")


def _other(config: Mapping[str, Any]) -> str:
    kind = config.get("model_type")
    if kind == _TOWER_KIND:
        what = "this is Emu3-VisionTokenizer, only the part that reads pictures"
        return f"{what}; convert it together with Emu3-Gen or Emu3-Chat by tools/emu3/convert.py"
    if kind == _ORIGINAL_KIND:
        return f"this is BAAI's original form, which runs code of its own and is not supported; {_CONVERT}"
    if kind == "emu3_text_model":
        return f"this is Emu3's language model alone, without the part for pictures; {_CONVERT}"
    return f"this is not an Emu3 (`model_type` is {kind!r}); use one, such as {PUBLISHED['BAAI/Emu3-Gen']}"
