"""A Hugging Face folder as a target: safetensors, one tensor at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from flagscale.checks.weight_files import INDEX, WHOLE
from flagscale.files import write_atomic
from megatron.flagscale.convert.families.llava import fillings
from megatron.flagscale.convert.huggingface import CODES
from megatron.flagscale.convert.model import Model
from megatron.flagscale.convert.tensors import Entry


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
        self._fillings = fillings(model)
        self._shards = _plan(dtypes, model, shard_bytes)
        self._places = iter([(number, one) for number, shard in enumerate(self._shards) for one in shard])
        self._number = -1
        self._file: BinaryIO | None = None

    def write(self, entry: Entry, tensor: torch.Tensor) -> None:
        """Append the tensors of an entry; call it in the order of the entries."""
        parts = [*entry.join.split(tensor, self._model), *(tensor for _ in entry.copies)]
        for name, part in zip((*entry.huggingface, *entry.copies), parts, strict=True):
            self._append(name, part)

    def _append(self, name: str, part: torch.Tensor) -> None:
        number, planned = next(self._places)
        assert (name, part.shape, part.dtype) == (planned.name, planned.shape, planned.dtype)
        if number != self._number:
            self._open(number)
        assert self._file is not None
        self._file.write(part.contiguous().view(-1).view(torch.uint8).numpy())

    def finish(self) -> None:
        """Write what no entry holds, and close the last shard; write the index if there are several."""
        planned = {one.name: one for shard in self._shards for one in shard}
        for name, value in self._fillings.items():
            self._append(name, torch.full(planned[name].shape, value, dtype=planned[name].dtype))
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


def _plan(dtypes: Mapping[Entry, torch.dtype], model: Model, shard_bytes: int) -> list[list[_Planned]]:
    shards: list[list[_Planned]] = [[]]
    filled = 0
    for one in _planned(dtypes, model):
        if shards[-1] and filled + one.size > shard_bytes:
            shards.append([])
            filled = 0
        filled += one.size
        shards[-1].append(one)
    return shards


def _planned(dtypes: Mapping[Entry, torch.dtype], model: Model) -> Iterator[_Planned]:
    """Yield all tensors of a folder in order: those of the entries, then the fillings."""
    for entry, dtype in dtypes.items():
        shapes = [*entry.parts, *(entry.shape for _ in entry.copies)]
        for name, shape in zip((*entry.huggingface, *entry.copies), shapes, strict=True):
            yield _Planned(name, shape, dtype, dtype.itemsize * math.prod(shape))
    for name in fillings(model):
        assert model.vision
        yield _Planned(name, (model.vision.tower.hidden,), dtype, dtype.itemsize * model.vision.tower.hidden)


def _header(shard: Sequence[_Planned]) -> bytes:
    """Return the header of a safetensors file: its length in 8 bytes, then JSON padded to 8 bytes."""
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for one in shard:
        start, end = end, end + one.size
        fields[one.name] = {"dtype": CODES[one.dtype], "shape": one.shape, "data_offsets": [start, end]}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
