"""A Megatron checkpoint (`torch_dist`) as a source, one tensor at a time, without a trainer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from flagscale.errors import Problem, UserError
from megatron.flagscale.convert.adapters import is_adapter
from megatron.flagscale.convert.model import Model
from megatron.flagscale.convert.tensors import EMBEDDING, OUTPUT, Entry, entries
from megatron.flagscale.convert.torch_dist_reader import StoredTensors, read_arguments

__all__ = ["TorchDistSource", "open_source", "read_arguments", "stored_rows"]  # what a reader has


class TorchDistSource:
    """A checkpoint whose tensors match its model in names, number and shapes.

    Rows that pad the vocabulary are left out, regardless of the layout of the checkpoint.
    """

    def __init__(self, checkpoint: Path, model: Model) -> None:
        self.folder, self.model = checkpoint, model
        self._stored = StoredTensors(checkpoint)
        self._tensors = self._stored.found
        self._keys = {entry: self._key(entry) for entry in entries(model)}
        problems = [
            Problem(what, str(checkpoint)) for what in (*self._differences(), *self._stored.cut_files())
        ]
        if problems:
            raise UserError(problems)

    def dtype(self, entry: Entry) -> torch.dtype:
        """Return the precision of a tensor as stored."""
        dtype: torch.dtype = self._tensors[self._keys[entry]].properties.dtype
        return dtype

    def read(self, entry: Entry) -> torch.Tensor:
        """Return the tensor of an entry of `entries(self.model)`, assembled from its pieces."""
        key = self._keys[entry]
        whole = torch.empty(entry.shape, dtype=self.dtype(entry))
        first = () if entry.expert is None else (entry.expert,)
        for chunk in self._tensors[key].chunks:
            if first and chunk.offsets[0] != entry.expert:
                continue
            offsets, sizes = chunk.offsets[len(first) :], chunk.sizes[len(first) :]
            kept = min(sizes[0], entry.shape[0] - offsets[0])
            if kept > 0:
                place = tuple(
                    slice(at, at + size) for at, size in zip(offsets, (kept, *sizes[1:]), strict=True)
                )
                whole[place] = self._stored.piece(key, chunk).reshape(tuple(sizes))[:kept]
        return whole

    def _key(self, entry: Entry) -> str:
        has_other_name = entry.megatron not in self._tensors and entry.also in self._tensors
        return entry.also if has_other_name else entry.megatron

    def _differences(self) -> Iterator[str]:
        tensors = self._stored.shapes()
        known = {name for entry in self._keys for name in (entry.megatron, entry.also)}
        # A tied output is stored a second time if the last pipeline stage holds a copy.
        known |= {OUTPUT} if self.model.tied else set()
        missing = sorted({key for key in self._keys.values() if key not in tensors})
        if missing:
            stacked = any(name.startswith("decoder.layers.self_attention") for name in tensors)
            hint = " (all layers in one tensor: save it with one key per layer)" if stacked else ""
            yield f"{len(missing)} tensors are missing{hint}: {', '.join(missing[:3])}"
        if extra := sorted(tensors.keys() - known):
            family = self.model.family
            yield f"{len(extra)} tensors do not belong to the family {family}: {', '.join(extra[:3])}"
        for entry, key in self._keys.items():
            if key not in tensors:
                continue
            shape = entry.shape if entry.expert is None else (self.model.experts, *entry.shape)
            found = tensors[key]
            padded = entry.has_vocabulary and found[0] > shape[0] and found[1:] == shape[1:]
            if found != shape and not padded:
                yield f"{key} has shape {list(found)}, but the checkpoint's arguments give {list(shape)}"


def open_source(checkpoint: Path, model: Model) -> TorchDistSource:
    """Return a checkpoint as a source; raises `UserError` if it does not hold the model."""
    return TorchDistSource(checkpoint, model)


def stored_rows(checkpoint: Path) -> int:
    """Return the number of stored rows of the embedding: tokens and padding."""
    found = StoredTensors(checkpoint).found
    embedding = found.get(EMBEDDING)
    if embedding is None and any(is_adapter(name) for name in found):
        hint = "merge it into its base, or export it: tools/checkpoint/adapter.py"
        raise UserError([Problem("holds an adapter without its base", str(checkpoint), hint)])
    if embedding is None:
        raise UserError(f"{checkpoint}: no embedding found, so this is not a Megatron GPT model")
    rows: int = embedding.size[0]
    return rows
