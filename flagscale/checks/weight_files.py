"""The weights of a model folder: the tensors that transformers and vLLM both read, or why they differ.

transformers prefers the whole file to the index (5.19, `modeling_utils._get_resolved_checkpoint_files`). vLLM
prefers Mistral's own file, else follows the index, and without an index reads every file (0.32,
`default_loader._prepare_weights`). Neither reports that the folder holds other weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from flagscale.checks.stored_tensors import Stored, same_values, stored_in

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_BIN, _BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_MISTRAL, _MISTRAL_INDEX = "consolidated*.safetensors", "consolidated.safetensors.index.json"
_ADAPTER = "adapter_config.json"
_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")
LOAD_FORMATS = ("auto", "hf", "safetensors", "fastsafetensors", "instanttensor")
"""Values of vLLM's `load_format` for which a folder is read as described here."""
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")
# Tensors that Mistral's file holds in the same order of rows, by their names in transformers.
_MISTRAL_NAMES = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "model.layers.0.input_layernorm.weight": "layers.0.attention_norm.weight",
    "model.layers.0.self_attn.o_proj.weight": "layers.0.attention.wo.weight",
    "lm_head.weight": "output.weight",
}


@dataclass(frozen=True)
class Listing:
    """The names of a folder's files, and the files that each index among them names."""

    names: frozenset[str]
    indexes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    chosen: str = ""
    """The file that `transformers_weights` in `config.json` names."""

    def like(self, form: str) -> frozenset[str]:
        """Return the names of a form such as `*.safetensors`."""
        return frozenset(name for name in self.names if fnmatchcase(name, form))


def transformers_reads(listing: Listing) -> frozenset[str]:
    """Return the files from which transformers takes the weights; empty if it refuses the folder."""
    for name in (listing.chosen, WHOLE, INDEX, _BIN, _BIN_INDEX):
        if name in listing.indexes:
            return listing.indexes[name]
        if name and (name in listing.names or name == listing.chosen):
            return frozenset({name})
    return frozenset()


def vllm_reads(listing: Listing, load_format: str = "auto") -> frozenset[str]:
    """Return the files from which vLLM takes the weights; empty if it refuses the folder."""
    index, forms = INDEX, ["*.safetensors", "*.bin", "*.pt"]
    if load_format == "auto" and listing.like(_MISTRAL):
        index, forms = _MISTRAL_INDEX, [_MISTRAL]
    elif load_format not in ("auto", "hf"):
        forms = ["*.safetensors"]
    form = next((form for form in forms if listing.like(form)), forms[0])
    if form.endswith(".safetensors"):
        return listing.indexes.get(index, listing.like(form))
    return frozenset(name for name in listing.like(form) if not name.endswith(_NOT_WEIGHTS))


def difference(listing: Listing, load_format: str = "auto") -> str:
    """Return how transformers and vLLM differ in the files that they read, and the fix; "" if they agree.

    A folder that only one of them can read leaves no doubt about its weights.
    """
    one, other = transformers_reads(listing), vllm_reads(listing, load_format)
    if one == other or not one or not other:
        return ""
    if one < other:
        more = _some(other - one)
        return f"vLLM would also read {more}, which transformers ignores; remove {more}"
    first, second = _described(one, listing), _described(other, listing)
    return f"transformers reads {first}, but vLLM reads {second}; keep one of them and remove the other"


def weights_of(
    folder: Path, config: Mapping[str, Any], load_format: str = "auto"
) -> tuple[dict[str, Stored], list[str]]:
    """Return the tensors that transformers and vLLM both read, by name, and what is wrong with their files.

    There are no tensors if the weights are in another format than safetensors.
    """
    listing, indexed, problems = _listing(folder, str(config.get("transformers_weights") or ""))
    if problems:
        return {}, problems
    files = transformers_reads(listing) or vllm_reads(listing, load_format)
    if not files:
        return {}, [f"{folder}: contains no weights (no *.safetensors)"]
    if _ADAPTER in listing.names:
        what = f"{folder}: holds an adapter ({_ADAPTER}), which transformers applies and vLLM ignores"
        problems.append(f"{what}; merge it into the model, or move it to another folder")
    missing = _missing(files | vllm_reads(listing, load_format), listing)
    stored = _read(folder, files & listing.names, problems)
    differ = missing or difference(listing, load_format)
    if differ and (missing or not _is_published_twice(folder, stored, listing, load_format)):
        problems.append(f"{folder}: {differ}")
    if not problems and stored and (lacking := sorted(indexed.keys() - stored.keys())):
        problems.append(f"{folder / INDEX}: lists {_some(lacking)}, which the files do not contain")
    return stored, problems


def _listing(folder: Path, chosen: str) -> tuple[Listing, dict[str, str], list[str]]:
    """Return the folder's listing, its index of safetensors (tensor -> file), and what is wrong with it."""
    names = frozenset(path.name for path in folder.iterdir())
    indexes, tensors, problems = {}, {}, []
    for name in sorted(names & {INDEX, _BIN_INDEX, _MISTRAL_INDEX, chosen}):
        if not name.endswith(".index.json"):
            continue
        try:
            found = read_index(folder / name)
        except ValueError as error:
            problems.append(f"{error}; remove it, or save the model again")
            continue
        indexes[name] = frozenset(found.values())
        if name == INDEX:
            tensors = found
    listing = Listing(names, indexes, chosen)
    return listing, tensors if transformers_reads(listing) == indexes.get(INDEX) else {}, problems


def read_index(path: Path) -> dict[str, str]:
    """Return the file of each tensor in an index of shards; raises ValueError if the index cannot be used."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    found = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise ValueError(f"{path}: has no `weight_map` from tensors to files")
    if not found:
        raise ValueError(f"{path}: its `weight_map` is empty")
    return found


def _missing(files: frozenset[str], listing: Listing) -> str:
    """Return which of the files are missing, whether an index or their names say so; "" if none."""
    if absent := sorted(files - listing.names):
        named = next((name for name, named in listing.indexes.items() if absent[0] in named), "")
        what = f"missing shard {_some(absent)}{f', which {named} names' if named else ''}"
        return (
            f"{what}; if {WHOLE} is the model, remove {named}" if named and WHOLE in listing.names else what
        )
    if any(files <= named for named in listing.indexes.values()):
        return ""
    parts = [match for match in map(_SHARD.fullmatch, sorted(files)) if match]
    for stem, count in sorted({(match[1], match[2]) for match in parts}):
        found = sum((match[1], match[2]) == (stem, count) for match in parts)
        if found < int(count):
            return f"contains only {found} of the {int(count)} shards {stem}-*-of-{count}.safetensors"
    return ""


def _read(folder: Path, files: Iterable[str], problems: list[str]) -> dict[str, Stored]:
    """Return the tensors of these files; add damaged files, and the first tensors in two, to `problems`."""
    stored: dict[str, Stored] = {}
    for name in sorted(one for one in files if one.endswith(".safetensors")):
        try:
            found = stored_in(folder / name)
        except ValueError as error:
            problems.append(str(error))
            continue
        if twice := found.keys() & stored.keys():
            what = f"{stored[min(twice)].file.name} and {name} both hold {_some(twice)}"
            problems.append(f"{folder}: {what}; remove what an earlier save left behind")
            return stored
        stored |= found
    return stored


def _is_published_twice(
    folder: Path, stored: Mapping[str, Stored], listing: Listing, load_format: str
) -> bool:
    """Return whether vLLM reads Mistral's own file, and it holds the weights of the others."""
    files = vllm_reads(listing, load_format)
    if not files <= listing.like(_MISTRAL):
        return False
    own = _read(folder, files, [])
    pairs = [(stored.get(name), own.get(mistral)) for name, mistral in _MISTRAL_NAMES.items()]
    known = [(one, other) for one, other in pairs if one or other]
    return bool(known) and all(one and other and same_values(one, other) for one, other in known)


def _described(files: frozenset[str], listing: Listing) -> str:
    index = next((name for name, named in listing.indexes.items() if named == files), "")
    return f"{_some(files)} ({index})" if index else _some(files)


def _some(names: Iterable[str]) -> str:
    first, *more = sorted(names)
    return f"{first} and {len(more)} more" if more else first
