"""A Megatron checkpoint (`torch_dist`) as a target, one tensor at a time, without a trainer."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import uuid
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from flagscale.run.checkpoints import TRACKER
from flagscale.run.manifest import RELEASE, write_manifest
from megatron.flagscale.convert.megatron_args import checkpoint_arguments
from megatron.flagscale.convert.model import Model
from megatron.flagscale.convert.tensors import Entry
from megatron.flagscale.convert.torch_dist import COMMON

_FILE_BYTES = 4 * 2**30
_LINEAR = re.compile(r"\.(linear_\w+|eh_proj)\.weight$")
"""The weights of linear layers."""


class TorchDistTarget:
    """Writes a checkpoint that `megatron.training` loads in every layout: parameters without optimizer state.

    The vocabulary is written without padding: the trainer adds the rows of zeros that its layout needs.
    """

    def __init__(self, folder: Path, model: Model) -> None:
        self._root, self._folder = folder, folder / RELEASE
        self._folder.mkdir()
        self._model = model
        self._tensors: dict[str, Any] = {}
        self._places: dict[MetadataIndex, _StorageInfo] = {}
        self._files = 0
        self._file: BinaryIO = self._next_file()

    def write(self, entry: Entry, tensor: torch.Tensor) -> None:
        """Append a tensor; that of an expert becomes a part of the tensor of all experts."""
        for key in filter(None, (entry.megatron, entry.also)):
            self._write_piece(key, entry, tensor)
        if _LINEAR.search(entry.megatron):
            # The trainer expects an extra state for every linear layer; without fp8 it is empty.
            shard = "shard_0_1" if entry.expert is None else f"shard_{entry.expert}_{self._model.experts}"
            self._write_object(f"{entry.megatron.removesuffix('weight')}_extra_state/{shard}", [None])

    def _write_piece(self, key: str, entry: Entry, tensor: torch.Tensor) -> None:
        offsets, sizes = [0] * tensor.dim(), list(tensor.shape)
        size = list(tensor.shape)
        if entry.expert is not None:
            offsets, sizes, size = [entry.expert, *offsets], [1, *sizes], [self._model.experts, *size]
            tensor = tensor.unsqueeze(0)
        chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        known = self._tensors.setdefault(
            key, TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), torch.Size(size), [])
        )
        known.chunks.append(chunk)
        # torch.save would write the whole storage of a view.
        own = tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
        index = MetadataIndex(key, chunk.offsets, len(known.chunks) - 1)
        self._append(index, own.contiguous())

    def _write_object(self, key: str, value: Any) -> None:
        self._tensors[key] = BytesStorageMetadata()
        self._append(MetadataIndex(key), value)

    def _append(self, index: MetadataIndex, value: Any) -> None:
        if self._file.tell() >= _FILE_BYTES:
            self._file = self._next_file()
        start = self._file.tell()
        try:
            torch.save(value, self._file)
        except RuntimeError as error:
            # If a write fails, torch fails once more when it closes its archive.
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        self._places[index] = _StorageInfo(Path(self._file.name).name, start, self._file.tell() - start)

    def _next_file(self) -> BinaryIO:
        if self._files:
            self._file.close()
        self._files += 1
        return (self._folder / f"__0_{self._files - 1}.distcp").open("wb")

    def finish(self) -> None:
        """Write everything else that a checkpoint needs: common state, metadata, manifest, tracker."""
        self._write_object(COMMON, [_common_state(self._model)])
        self._file.close()
        metadata = Metadata(self._tensors, storage_data=self._places, version="1.0.0")
        metadata.storage_meta = StorageMeta(str(self._folder), save_id=str(uuid.uuid4()))
        (self._folder / ".metadata").write_bytes(pickle.dumps(metadata))
        (self._folder / "metadata.json").write_text(
            json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1})
        )
        write_manifest(self._folder)
        (self._root / TRACKER).write_text(RELEASE)

    def close(self) -> None:
        """Close the open file; call it after a failure, too."""
        self._file.close()


def _common_state(model: Model) -> dict[str, Any]:
    return {
        "args": argparse.Namespace(**checkpoint_arguments(model)),
        "checkpoint_version": 3.0,
        "iteration": 0,
        "num_floating_point_operations_so_far": 0.0,
        "content_metadata": {
            "distrib_optim_sharding_type": "fully_reshardable",
            "singleton_local_shards": False,
            "chained_optim_avoid_prefix": True,
        },
    }
