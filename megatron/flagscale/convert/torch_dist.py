"""A Megatron checkpoint (`torch_dist`) as a source, one tensor at a time, without a trainer.

The format is torch's distributed checkpoint: pieces of tensors in `.distcp` files, each written by
`torch.save`, and `.metadata`, which records the file and offset of each piece. The layout does not matter:
a reader assembles the pieces that it needs.
"""

from __future__ import annotations

import io
import pickle
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from flagscale.errors import Problem, UserError
from megatron.flagscale.checkpoint import safe_unpickle
from megatron.flagscale.chips import HOST
from megatron.flagscale.convert.model import Model
from megatron.flagscale.convert.tensors import EMBEDDING, OUTPUT, Entry, entries

COMMON = "common_state/shard_0_1"
"""The object that holds everything that is not a tensor: arguments, iteration."""


def read_arguments(checkpoint: Path) -> dict[str, Any]:
    """Return the arguments of the training that saved a checkpoint.

    Raises:
        UserError: the format is not `torch_dist`, or the checkpoint is damaged.
    """
    if not (checkpoint / ".metadata").is_file():
        raise UserError(f"{checkpoint}: not a checkpoint in the torch_dist format")
    try:
        if (checkpoint / "common.pt").is_file():  # written by an older Megatron
            common = safe_unpickle.load((checkpoint / "common.pt").read_bytes())
        else:
            metadata = FileSystemReader(checkpoint).read_metadata()
            where = metadata.storage_data[MetadataIndex(COMMON)]
            (common,) = safe_unpickle.load(_read(checkpoint, where))
        arguments: dict[str, Any] = vars(common["args"])
        return arguments
    except (KeyError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"{checkpoint}: its arguments cannot be read: {error!r}") from error


def _read(checkpoint: Path, where: _StorageInfo) -> bytes:
    with (checkpoint / where.relative_path).open("rb") as file:
        file.seek(where.offset)
        content: bytes = file.read(where.length)
        return content


class TorchDistSource:
    """A checkpoint whose tensors match its model in names, number and shapes.

    Rows that pad the vocabulary are left out, regardless of the layout of the checkpoint.
    """

    def __init__(self, checkpoint: Path, model: Model) -> None:
        self.folder, self.model = checkpoint, model
        self._metadata = FileSystemReader(checkpoint).read_metadata()
        self._tensors = {
            name: found
            for name, found in self._metadata.state_dict_metadata.items()
            if isinstance(found, TensorStorageMetadata)
        }
        self._keys = {entry: self._key(entry) for entry in entries(model)}
        problems = [Problem(what, str(checkpoint)) for what in (*self._differences(), *self._cut_files())]
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
                whole[place] = self._piece(key, chunk).reshape(tuple(sizes))[:kept]
        return whole

    def _piece(self, key: str, chunk: ChunkStorageMetadata) -> torch.Tensor:
        where = self._metadata.storage_data[MetadataIndex(key, chunk.offsets)]
        data = io.BytesIO(_read(self.folder, where))
        try:
            piece: torch.Tensor = torch.load(data, map_location=HOST, weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise UserError(f"{self.folder / where.relative_path}: damaged at {key}: {error}") from error
        return piece

    def _key(self, entry: Entry) -> str:
        has_other_name = entry.megatron not in self._tensors and entry.also in self._tensors
        return entry.also if has_other_name else entry.megatron

    def _differences(self) -> Iterator[str]:
        tensors = {name: tuple(found.size) for name, found in self._tensors.items()}
        own = {name for name in tensors if not name.startswith("optimizer.")}
        known = {name for entry in self._keys for name in (entry.megatron, entry.also)}
        # A tied output is stored a second time if the last pipeline stage holds a copy.
        known |= {OUTPUT} if self.model.tied else set()
        missing = sorted({key for key in self._keys.values() if key not in tensors})
        if missing:
            stacked = any(name.startswith("decoder.layers.self_attention") for name in own)
            hint = " (all layers in one tensor: save it with one key per layer)" if stacked else ""
            yield f"{len(missing)} tensors are missing{hint}: {', '.join(missing[:3])}"
        if extra := sorted(own - known):
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

    def _cut_files(self) -> Iterator[str]:
        ends: dict[str, int] = defaultdict(int)
        for where in self._metadata.storage_data.values():
            ends[where.relative_path] = max(ends[where.relative_path], where.offset + where.length)
        for name, end in sorted(ends.items()):
            path = self.folder / name
            size = path.stat().st_size if path.is_file() else 0
            if size < end:
                yield f"{name} is truncated: {size} of {end} bytes"


def open_source(checkpoint: Path, model: Model) -> TorchDistSource:
    """Return a checkpoint as a source; raises `UserError` if it does not hold the model."""
    return TorchDistSource(checkpoint, model)


def stored_rows(checkpoint: Path) -> int:
    """Return the number of stored rows of the embedding: tokens and padding."""
    found = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    embedding = found.get(EMBEDDING)
    if embedding is None:
        raise UserError(f"{checkpoint}: no embedding found, so this is not a Megatron GPT model")
    rows: int = embedding.size[0]
    return rows
