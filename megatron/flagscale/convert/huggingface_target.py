"""A Hugging Face folder as a target: safetensors, one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from megatron.flagscale.convert.families.llava import fillings
from megatron.flagscale.convert.huggingface import CODES, NAMES
from megatron.flagscale.convert.model import Model
from megatron.flagscale.convert.tensors import Entry
from megatron.flagscale.convert.weight_writer import Planned, WeightWriter


class HuggingFaceTarget:
    """Writes the shards of a model in the order of `entries(model)`, with at most one tensor in memory.

    A shard starts with the names, shapes and offsets of all its tensors, so `dtypes` must give the precision
    of every entry in advance. A shard is at most `shard_bytes` long, unless a single tensor is longer.
    """

    def __init__(
        self, folder: Path, model: Model, dtypes: Mapping[Entry, torch.dtype], shard_bytes: int
    ) -> None:
        self._model = model
        self._fillings = fillings(model)
        self._planned = {one.name: one for one in _planned(dtypes, model)}
        self._shards = WeightWriter(folder, self._planned.values(), shard_bytes)

    def write(self, entry: Entry, tensor: torch.Tensor) -> None:
        """Append the tensors of an entry, or its parts of stacked ones; call it in the entries' order."""
        parts = [*entry.join.split(tensor, self._model), *(tensor for _ in entry.copies)]
        for name, part in zip((*entry.huggingface, *entry.copies), parts, strict=True):
            self._append(name, part)

    def _append(self, name: str, part: torch.Tensor) -> None:
        planned = self._planned[name]
        assert part.shape == planned.shape[len(planned.shape) - part.dim() :]
        assert CODES[part.dtype] == planned.dtype
        self._shards.append(name, [part.contiguous().view(-1).view(torch.uint8).numpy()])

    def finish(self) -> None:
        """Write what no entry holds, and close the last shard; write the index if there are several."""
        for name, value in self._fillings.items():
            planned = self._planned[name]
            self._append(name, torch.full(planned.shape, value, dtype=NAMES[planned.dtype]))
        self._shards.finish()

    def close(self) -> None:
        """Close the open shard; call it after a failure, too."""
        self._shards.close()


def _planned(dtypes: Mapping[Entry, torch.dtype], model: Model) -> Iterator[Planned]:
    """Yield all tensors of a folder in order: those of the entries, then the fillings."""
    for entry, dtype in dtypes.items():
        if entry.stacked and entry.expert:
            continue  # planned with the first expert
        shapes = [*entry.stored_shapes, *(entry.shape for _ in entry.copies)]
        for name, shape in zip((*entry.huggingface, *entry.copies), shapes, strict=True):
            yield Planned(name, CODES[dtype], shape, dtype.itemsize * math.prod(shape))
    for name in fillings(model):
        assert model.vision
        hidden = model.vision.tower.hidden
        yield Planned(name, CODES[dtype], (hidden,), dtype.itemsize * hidden)
