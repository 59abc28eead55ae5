"""The tensors in a `torch_dist` checkpoint, read without a trainer.

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

from flagscale.errors import UserError
from megatron.flagscale.checkpoint import safe_unpickle
from megatron.flagscale.chips import HOST

COMMON = "common_state/shard_0_1"
"""The object that holds everything that is not a tensor: arguments, iteration."""
OPTIMIZER = "optimizer."
"""What the names of the optimizer's tensors begin with."""


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


class StoredTensors:
    """The tensors of a checkpoint, by name, and their pieces."""

    def __init__(self, checkpoint: Path) -> None:
        self.folder = checkpoint
        self._metadata = FileSystemReader(checkpoint).read_metadata()
        self.found: dict[str, TensorStorageMetadata] = {
            name: found
            for name, found in self._metadata.state_dict_metadata.items()
            if isinstance(found, TensorStorageMetadata)
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor of the model, without those of the optimizer."""
        return {
            name: tuple(found.size) for name, found in self.found.items() if not name.startswith(OPTIMIZER)
        }

    def piece(self, name: str, chunk: ChunkStorageMetadata) -> torch.Tensor:
        """Return a piece of a tensor; raises `UserError` if its file is damaged."""
        where = self._metadata.storage_data[MetadataIndex(name, chunk.offsets)]
        data = io.BytesIO(_read(self.folder, where))
        try:
            piece: torch.Tensor = torch.load(data, map_location=HOST, weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise UserError(f"{self.folder / where.relative_path}: damaged at {name}: {error}") from error
        return piece

    def whole(self, name: str) -> torch.Tensor:
        """Return a tensor, assembled from its pieces."""
        found = self.found[name]
        whole = torch.empty(found.size, dtype=found.properties.dtype)
        for chunk in found.chunks:
            ends = (at + size for at, size in zip(chunk.offsets, chunk.sizes, strict=True))
            place = tuple(slice(at, end) for at, end in zip(chunk.offsets, ends, strict=True))
            whole[place] = self.piece(name, chunk).reshape(tuple(chunk.sizes))
        return whole

    def cut_files(self) -> Iterator[str]:
        """Yield each file that is shorter than the index says, or missing."""
        ends: dict[str, int] = defaultdict(int)
        for where in self._metadata.storage_data.values():
            ends[where.relative_path] = max(ends[where.relative_path], where.offset + where.length)
        for name, end in sorted(ends.items()):
            path = self.folder / name
            size = path.stat().st_size if path.is_file() else 0
            if size < end:
                yield f"{name} is truncated: {size} of {end} bytes"
