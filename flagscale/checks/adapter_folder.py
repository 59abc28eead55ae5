"""Check a folder of PEFT with a LoRA adapter, as vLLM 0.32 reads it, without loading it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flagscale.checks.stored_tensors import Stored, stored_in

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What the names of its tensors begin with."""


def problems(folder: Path, most_rank: int, base: Mapping[str, Stored]) -> Iterator[str]:
    """Yield why an engine cannot serve an adapter.

    `most_rank` is the highest rank that it allows; `base` holds the stored tensors of the model, by name.
    """
    if not os.path.isdir(folder):
        yield f"{folder}: no such folder"
        return
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        yield f"{folder}: not a folder of PEFT (no {CONFIG}){_hint(folder)}"
        return
    except (OSError, ValueError) as error:
        yield f"{folder / CONFIG}: cannot be read ({error})"
        return
    if not isinstance(config, dict) or type(rank := config.get("r")) is not int:
        yield f"{folder / CONFIG}: not of an adapter of LoRA: it has no rank (`r`, a whole number)"
        return
    if rank > most_rank:
        yield f"{folder}: its rank is {rank}, but `max_lora_rank` is {most_rank}"
    if not (folder / WEIGHTS).is_file():
        if not any((folder / name).is_file() for name in ("adapter_model.bin", "adapter_model.pt")):
            yield f"{folder}: contains no weights (no {WEIGHTS})"
        return
    try:
        stored = stored_in(folder / WEIGHTS)
    except ValueError as error:
        yield str(error)
        return
    yield from (f"{folder}: {what}" for what in _other_base(stored, base))


def _hint(folder: Path) -> str:
    if (folder / "latest_checkpointed_iteration.txt").is_file():
        return f"; export it: tools/checkpoint/adapter.py export --load {folder} --save FOLDER"
    return ""


def _other_base(stored: Mapping[str, Stored], base: Mapping[str, Stored]) -> Iterator[str]:
    """Yield the first matrix that does not fit the model's weight of the same name, if any has this name."""
    for name, one in sorted(stored.items()):
        module, _, part = name.removeprefix(PREFIX).rpartition(".lora_")
        weight = base.get(f"{module}.weight")
        if weight is None or len(weight.shape) != 2 or len(one.shape) != 2:
            continue
        rows, columns = weight.shape
        found, needed = (one.shape[1], columns) if part.startswith("A") else (one.shape[0], rows)
        if found != needed:
            what = f"it belongs to another model: {name} has shape {list(one.shape)}"
            yield f"{what}, but {module}.weight of the model has {list(weight.shape)}"
            return


def module_of(text: Any) -> tuple[str, str] | None:
    """Return the name and the path in a value of vLLM's `lora_modules`; None if it has neither form."""
    if isinstance(text, str) and "=" in text and "," not in text:
        name, _, path = text.partition("=")
        return (name, path) if name and path else None
    try:
        read = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return None
    if isinstance(read, dict) and all(isinstance(read.get(key), str) for key in ("name", "path")):
        return read["name"], read["path"]
    return None
