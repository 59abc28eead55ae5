"""Check a model folder in Hugging Face's format without loading it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flagscale.errors import Violation

_INDEX = "model.safetensors.index.json"
_MISTRAL_CONFIG = "params.json"
_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.gguf")
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tekken.json")
_MOST_HEADER = 100 << 20
"""Bytes; safetensors itself refuses longer headers."""


def is_path(model: str) -> bool:
    """Return whether a model or tokenizer is a path on this host; `owner/name` is a name on a model hub."""
    return "://" not in model and (model.startswith((".", "/", "~")) or model.count("/") != 1)


def inputs_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments (by dest) that `folder_violations` reads."""
    names = ("model", "tokenizer", "load_format", "skip_tokenizer_init")
    return {name: values[name] for name in names if values.get(name) is not None}


def folder_violations(values: Mapping[str, Any], cwd: Path = Path()) -> Iterator[Violation]:
    """Yield every violation in the model and tokenizer folders, relative to `cwd`."""
    model, tokenizer = str(values["model"]), str(values.get("tokenizer") or "")
    for name, path in (("model", model), ("tokenizer", tokenizer)):
        if path.startswith("~"):
            yield name, f"{path}: write the full path: the engine does not expand `~`"
            return
    if is_path(model) or os.path.isdir(cwd / model):
        needs_tokenizer = not tokenizer and not values.get("skip_tokenizer_init")
        weights = values.get("load_format") != "dummy"
        for what in problems(cwd / model, weights=weights, tokenizer=needs_tokenizer):
            yield "model", what
    if tokenizer and is_path(tokenizer) and not os.path.exists(cwd / tokenizer):
        yield "tokenizer", f"{tokenizer}: no such tokenizer"


def problems(folder: Path, *, weights: bool = True, tokenizer: bool = True) -> Iterator[str]:
    """Yield why an engine cannot load the folder; `weights`, `tokenizer`: whether it needs them."""
    if not os.path.isdir(folder):
        yield f"{folder}: no such model folder (a name on a model hub has an owner: OWNER/NAME)"
        return
    try:
        if not os.path.isfile(folder / _MISTRAL_CONFIG):
            read_config(folder)
    except ValueError as error:
        yield str(error)
    if weights:
        yield from _weights(folder)
    if tokenizer and not any(os.path.isfile(folder / name) for name in _TOKENIZERS):
        yield f"{folder}: contains no tokenizer (no {_TOKENIZERS[0]}); name one with `tokenizer`"


def read_config(folder: Path) -> Mapping[str, Any]:
    """Return the folder's `config.json`; raises ValueError if it is missing or not a JSON object."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder}: not a model folder (no config.json)") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: not a JSON object")
    return config


def misspelt_architecture(name: str, known: Iterable[str]) -> str:
    """Return a hint at the known architecture that is meant by `name`; "" unless it is of the same family.

    A family with a similar name is another one: Mistral is not Mixtral, and Qwen3Moe is not Qwen3.
    """
    from difflib import SequenceMatcher  # imported here, because nearly every start has no use for it

    def family(text: str) -> list[str]:
        """Return the letters of the family's name; a doubled one counts once, and their order does not."""
        name = re.split("for(?=[a-z])|lmhead|model$", text.lower())[0]
        return sorted(re.sub(r"(.)\1", r"\1", name))

    def likeness(other: str) -> tuple[float, float]:
        pairs = ((name.lower(), other.lower()), (name, other))
        any_case, same_case = (SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return any_case, same_case

    best = max((other for other in known if family(other) == family(name)), key=likeness, default="")
    return f"did you mean `{best}`?" if best and likeness(best)[0] > 0.75 else ""


def _weights(folder: Path) -> Iterator[str]:
    shards = sorted(folder.glob("*.safetensors"))
    index = folder / _INDEX
    if os.path.isfile(index):
        try:
            named = {
                str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            yield f"{index}: cannot be read ({error})"
            return
        missing = sorted(named - {shard.name for shard in shards})
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            yield f"{folder}: missing shard {missing[0]}{more}"
    elif not shards and not any(next(folder.glob(form), None) for form in _OTHER_WEIGHTS):
        yield f"{folder}: contains no weights (no *.safetensors)"
    for shard in shards:
        if what := _damage(shard):
            yield f"{shard}: {what}"


def _damage(shard: Path) -> str:
    """Return the damage in a safetensors file, judged by its header and size; "" if there is none."""
    try:
        size = shard.stat().st_size
        with shard.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MOST_HEADER):
                return "truncated, or not a safetensors file"
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        wanted = 8 + length + max(ends, default=0)
    except OSError as error:
        return error.strerror or "cannot be read"
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return "its header cannot be read"
    return "" if size == wanted else f"{size} bytes long, but its header says {wanted}"
