"""A Hugging Face folder as a source and as a target: `config.json` and safetensors, one tensor at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open

from flagscale.checks.stored_tensors import Stored
from flagscale.checks.weight_files import INDEX, WHOLE, weights_of
from flagscale.errors import Problem, UserError
from flagscale.files import write_atomic
from megatron.flagscale.convert.families import registry
from megatron.flagscale.convert.files import read_json
from megatron.flagscale.convert.hf_config import read_config
from megatron.flagscale.convert.model import Model
from megatron.flagscale.convert.tensors import EMBEDDING, OUTPUT, Entry, entries

CONFIG = "config.json"
_NAMES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_CODES = {dtype: name for name, dtype in _NAMES.items()}
_SHOWN = 3
"""Tensors that a message names at most."""


class HuggingFaceSource:
    """A folder whose tensors match its `config.json` in names, number and shapes.

    `notices` tell how a folder was read whose `config.json` says otherwise.

    Raises:
        UserError: the tensors do not match; lists all differences.
    """

    def __init__(self, folder: Path, family: str | None = None) -> None:
        self.folder = folder
        config = read_json(folder / CONFIG)
        self.model: Model = read_config(config, str(folder / CONFIG), family)
        self._stored = _stored_tensors(folder, config, registry.load(self.model.family).class_name)
        self.notices: tuple[str, ...] = ()
        output, embedding = _tied_names(self.model)
        stored_twice = self.model.tied and {output, embedding} <= self._stored.keys()
        if stored_twice and not torch.equal(self._tensor(output), self._tensor(embedding)):
            self.model = replace(self.model, tied=False)
            what = f"{output} differs from the embedding to which {CONFIG} ties it"
            self.notices = (f"{what}: the model is converted as not tied, as transformers and vLLM read it",)
        problems = list(_differences(self.model, self._stored))
        if problems:
            raise UserError([Problem(problem.what, str(folder), problem.hint) for problem in problems])
        if config.get("dtype") is None and config.get("torch_dtype") is None:
            dtype = str(self.dtype(next(entries(self.model)))).removeprefix("torch.")
            self.model = replace(self.model, dtype=dtype)  # as transformers and vLLM do

    def dtype(self, entry: Entry) -> torch.dtype:
        """Return the precision of a tensor: the one that holds all values of its parts as stored."""
        return reduce(torch.promote_types, (_NAMES[self._stored[name].dtype] for name in entry.huggingface))

    def read(self, entry: Entry) -> torch.Tensor:
        """Return the tensor of an entry of `entries(self.model)`, joined into Megatron's form."""
        return entry.join.join([self._tensor(name) for name in entry.huggingface], self.model)

    def _tensor(self, name: str) -> torch.Tensor:
        # Reopened for each tensor: pages of a file that stays open would count as memory of this process.
        with safe_open(self._stored[name].file, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor


def _stored_tensors(folder: Path, config: Mapping[str, Any], class_name: str) -> dict[str, Stored]:
    stored, problems = weights_of(folder, config)
    if not stored and not problems:
        again = (
            f'transformers.{class_name}.from_pretrained(FOLDER, dtype="auto").save_pretrained(OTHER_FOLDER)'
        )
        raise UserError(
            [Problem("its weights are not in safetensors", str(folder), f"save it again: {again}")]
        )
    if problems:
        raise UserError(Problem(what) for what in problems)
    return stored


def _tied_names(model: Model) -> tuple[str, str]:
    """Return the names of the output and the embedding, whether or not the output is stored."""
    rows = {row.megatron: row.huggingface[0] for row in registry.load(model.family).rows}
    return rows[OUTPUT], rows[EMBEDDING]


def _differences(model: Model, stored: Mapping[str, Stored]) -> Iterator[Problem]:
    expected = {
        name: shape
        for entry in entries(model)
        for name, shape in zip(entry.huggingface, entry.parts, strict=True)
    }
    buffers, (output, _) = registry.load(model.family).buffers, _tied_names(model)
    optional = {name for name in stored if name.endswith(buffers) or (model.tied and name == output)}
    missing = [name for name in expected if name not in stored]
    extra = [name for name in stored if name not in expected and name not in optional]
    if missing:
        yield Problem(f"{len(missing)} of {len(expected)} tensors are missing: {_some(missing)}")
    if extra:
        yield Problem(f"{len(extra)} tensors do not belong to the family {model.family}: {_some(extra)}")
    known = {name: one for name, one in stored.items() if name in expected}
    wrong = [name for name, one in known.items() if one.shape != expected[name]]
    for name in wrong[:_SHOWN]:
        yield Problem(
            f"{name} has shape {list(known[name].shape)}, but {CONFIG} gives {list(expected[name])}"
        )
    if len(wrong) > _SHOWN:
        yield Problem(f"{len(wrong) - _SHOWN} more tensors have shapes that differ from {CONFIG}")
    codes = {one.dtype for one in known.values()} - _NAMES.keys()
    for code in sorted(codes):
        names = [name for name, one in known.items() if one.dtype == code]
        yield Problem(f"{_some(names)}: stored as {code}; only {', '.join(_NAMES)} are supported")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


@dataclass(frozen=True)
class _Planned:
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    size: int


class HuggingFaceTarget:
    """Writes the shards of a model in the order of `entries(model)`, with at most one tensor in memory.

    A shard starts with the names, shapes and offsets of all its tensors, so `dtypes` must give the precision
    of every entry in advance. A shard is at most `shard_bytes` long, unless a single tensor is longer.
    """

    def __init__(
        self, folder: Path, model: Model, dtypes: Mapping[Entry, torch.dtype], shard_bytes: int
    ) -> None:
        self._folder, self._model = folder, model
        self._shards = _plan(dtypes, shard_bytes)
        self._places = iter([(number, one) for number, shard in enumerate(self._shards) for one in shard])
        self._number = -1
        self._file: BinaryIO | None = None

    def write(self, entry: Entry, tensor: torch.Tensor) -> None:
        """Append the tensors of an entry; call it in the order of the entries."""
        for name, part in zip(entry.huggingface, entry.join.split(tensor, self._model), strict=True):
            number, planned = next(self._places)
            assert (name, part.shape, part.dtype) == (planned.name, planned.shape, planned.dtype)
            if number != self._number:
                self._open(number)
            assert self._file is not None
            self._file.write(part.contiguous().view(-1).view(torch.uint8).numpy())

    def finish(self) -> None:
        """Close the last shard, and write the index if there are several shards."""
        self.close()
        assert next(self._places, None) is None, "not every tensor was written"
        if len(self._shards) > 1:
            tensors = [planned for shard in self._shards for planned in shard]
            places = {
                planned.name: self._name(number)
                for number, shard in enumerate(self._shards)
                for planned in shard
            }
            index = {"metadata": {"total_size": sum(one.size for one in tensors)}, "weight_map": places}
            write_atomic(self._folder / INDEX, json.dumps(index, indent=2) + "\n")

    def close(self) -> None:
        """Close the open shard; call it after a failure, too."""
        if self._file is not None:
            self._file.close()

    def _name(self, number: int) -> str:
        count = len(self._shards)
        return WHOLE if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"

    def _open(self, number: int) -> None:
        self.close()
        self._number = number
        self._file = (self._folder / self._name(number)).open("wb")
        self._file.write(_header(self._shards[number]))


def _plan(dtypes: Mapping[Entry, torch.dtype], shard_bytes: int) -> list[list[_Planned]]:
    shards: list[list[_Planned]] = [[]]
    filled = 0
    for entry, dtype in dtypes.items():
        for name, shape in zip(entry.huggingface, entry.parts, strict=True):
            size = dtype.itemsize * math.prod(shape)
            if shards[-1] and filled + size > shard_bytes:
                shards.append([])
                filled = 0
            filled += size
            shards[-1].append(_Planned(name, shape, dtype, size))
    return shards


def _header(shard: Sequence[_Planned]) -> bytes:
    """Return the header of a safetensors file: its length in 8 bytes, then JSON padded to 8 bytes."""
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for one in shard:
        start, end = end, end + one.size
        fields[one.name] = {"dtype": _CODES[one.dtype], "shape": one.shape, "data_offsets": [start, end]}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
