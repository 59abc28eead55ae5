"""Write a `torch_dist` checkpoint without optimizer state, one tensor at a time, without a trainer."""

from __future__ import annotations

import argparse
import json
import pickle
import uuid
from collections.abc import Mapping, Sequence
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

from flagscale.checks.lora import BASE
from flagscale.checks.recorded import record
from flagscale.run.checkpoints import RELEASE, TRACKER, write_arguments
from flagscale.run.manifest import write_manifest
from megatron.flagscale.convert.torch_dist_reader import COMMON

_FILE_BYTES = 4 * 2**30


class TorchDistWriter:
    """Writes `folder/release`; the checkpoint is complete once `finish` has returned."""

    def __init__(self, folder: Path) -> None:
        self._root, self._folder = folder, folder / RELEASE
        self._folder.mkdir()
        self._tensors: dict[str, Any] = {}
        self._places: dict[MetadataIndex, _StorageInfo] = {}
        self._files = 0
        self._file: BinaryIO = self._next_file()

    def write(
        self, name: str, tensor: torch.Tensor, offsets: Sequence[int] = (), size: Sequence[int] = ()
    ) -> None:
        """Append a tensor, or the piece at these offsets of a tensor of this size."""
        chunk = ChunkStorageMetadata(torch.Size(offsets or [0] * tensor.dim()), tensor.shape)
        known = self._tensors.setdefault(
            name,
            TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), torch.Size(size or tensor.shape), []),
        )
        known.chunks.append(chunk)
        # torch.save would write the whole storage of a view.
        own = tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
        index = MetadataIndex(name, chunk.offsets, len(known.chunks) - 1)
        self._append(index, own.contiguous())

    def write_object(self, name: str, value: Any) -> None:
        """Append what is not a tensor."""
        self._tensors[name] = BytesStorageMetadata()
        self._append(MetadataIndex(name), value)

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

    def finish(self, arguments: Mapping[str, Any]) -> None:
        """Write everything else that a checkpoint needs: common state, metadata, record, tracker."""
        self.write_object(COMMON, [_common_state(arguments)])
        self._file.close()
        metadata = Metadata(self._tensors, storage_data=self._places, version="1.0.0")
        metadata.storage_meta = StorageMeta(str(self._folder), save_id=str(uuid.uuid4()))
        (self._folder / ".metadata").write_bytes(pickle.dumps(metadata))
        (self._folder / "metadata.json").write_text(
            json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1})
        )
        base = {BASE: arguments[BASE]} if BASE in arguments else {}
        write_arguments(self._folder, {**base, **record(arguments)})
        write_manifest(self._folder)
        (self._root / TRACKER).write_text(RELEASE)

    def close(self) -> None:
        """Close the open file; call it after a failure, too."""
        self._file.close()


def _common_state(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "args": argparse.Namespace(**arguments),
        "checkpoint_version": 3.0,
        "iteration": 0,
        "num_floating_point_operations_so_far": 0.0,
        "content_metadata": {
            "distrib_optim_sharding_type": "fully_reshardable",
            "singleton_local_shards": False,
            "chained_optim_avoid_prefix": True,
        },
    }
