"""A Megatron checkpoint (`torch_dist`) as a source and as a target, one tensor at a time, without a trainer.

The format is torch's distributed checkpoint: pieces of tensors in `.distcp` files, each as `torch.save`
writes it, and `.metadata` that says which piece of which tensor lies where. What is no tensor (arguments,
iteration) is an object named `common_state`. Layouts do not matter: a reader puts pieces together as it needs
them.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import uuid
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint import FileSystemReader
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

from flagscale.errors import Problem, UserError
from megatron.flagscale.checkpoint.manifest import TRACKER, candidates, fault_of, write_manifest
from megatron.flagscale.chips import HOST
from megatron.flagscale.convert import inert
from megatron.flagscale.convert.families import Entry, entries
from megatron.flagscale.convert.megatron_args import checkpoint_arguments
from megatron.flagscale.convert.model import Model

RELEASE = "release"
"""What the tracker file says, and the folder's name, of a checkpoint that no training has an iteration of."""

_COMMON = "common_state/shard_0_1"
_FILE_BYTES = 4 * 2**30
_OUTPUT = "output_layer.weight"


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint, or holds some."""
    return (folder / ".metadata").is_file() or (folder / TRACKER).is_file() or any(folder.glob("iter_*"))


def find_checkpoint(folder: Path, iteration: int | None = None) -> Path:
    """Return the newest complete checkpoint of a folder, or that of an iteration; a checkpoint is itself.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if (folder / ".metadata").is_file():
        chosen, fault = folder, fault_of(folder)
    elif iteration is None and _tracked(folder) == RELEASE:
        chosen, fault = folder / RELEASE, fault_of(folder / RELEASE)
    else:
        found = [one for one in candidates(folder) if iteration in (None, one.iteration)]
        usable = [one for one in found if one.usable]
        if not found:
            which = "" if iteration is None else f" of iteration {iteration}"
            raise UserError(f"{folder}: no checkpoint{which} here")
        if iteration is None and usable:
            return usable[0].path
        chosen, fault = found[0].path, found[0].fault
    if fault:
        raise UserError(f"{chosen}: the checkpoint cannot be used: {fault}")
    return chosen


def _tracked(folder: Path) -> str:
    return (folder / TRACKER).read_text().strip() if (folder / TRACKER).is_file() else ""


def read_arguments(checkpoint: Path) -> dict[str, Any]:
    """Return the arguments of the training that saved a checkpoint.

    Raises:
        UserError: another format than `torch_dist`, or damaged.
    """
    if not (checkpoint / ".metadata").is_file():
        raise UserError(f"{checkpoint}: not in the format torch_dist")
    try:
        if (checkpoint / "common.pt").is_file():  # of an older Megatron
            common = inert.load((checkpoint / "common.pt").read_bytes())
        else:
            metadata = FileSystemReader(checkpoint).read_metadata()
            where = metadata.storage_data[MetadataIndex(_COMMON)]
            (common,) = inert.load(_read(checkpoint, where))
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
    """A checkpoint whose tensors were compared with its model: names, number, shapes.

    Rows that pad the vocabulary are left out, whatever layout they came from.
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
        """The precision of a tensor as it is stored."""
        dtype: torch.dtype = self._tensors[self._keys[entry]].properties.dtype
        return dtype

    def read(self, entry: Entry) -> torch.Tensor:
        """The tensor of an entry of `entries(self.model)`, put together of its pieces."""
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
        # A tied output is stored once more where the last pipeline stage holds a copy.
        known |= {_OUTPUT} if self.model.tied else set()
        missing = sorted({key for key in self._keys.values() if key not in tensors})
        if missing:
            stacked = any(name.startswith("decoder.layers.self_attention") for name in own)
            hint = " (all layers in one tensor: save it with one key a layer)" if stacked else ""
            yield f"{len(missing)} tensors are missing{hint}: {', '.join(missing[:3])}"
        if extra := sorted(own - known):
            yield f"{len(extra)} tensors do not belong to a {self.model.family}: {', '.join(extra[:3])}"
        for entry, key in self._keys.items():
            if key not in tensors:
                continue
            shape = entry.shape if entry.expert is None else (self.model.experts, *entry.shape)
            found = tensors[key]
            padded = entry.has_vocabulary and found[0] > shape[0] and found[1:] == shape[1:]
            if found != shape and not padded:
                yield f"{key} is {list(found)}, its arguments say {list(shape)}"

    def _cut_files(self) -> Iterator[str]:
        ends: dict[str, int] = defaultdict(int)
        for where in self._metadata.storage_data.values():
            ends[where.relative_path] = max(ends[where.relative_path], where.offset + where.length)
        for name, end in sorted(ends.items()):
            path = self.folder / name
            size = path.stat().st_size if path.is_file() else 0
            if size < end:
                yield f"{name} is cut off: {size} of {end} bytes"


def stored_rows(checkpoint: Path) -> int:
    """Return the rows of the embedding as stored: tokens and what pads them."""
    found = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    embedding = found.get("embedding.word_embeddings.weight")
    if embedding is None:
        raise UserError(f"{checkpoint}: it holds no embedding, so it is no GPT model of Megatron's")
    rows: int = embedding.size[0]
    return rows


class TorchDistTarget:
    """Writes a checkpoint that `megatron.training` loads in every layout; its parameters alone, no optimizer.

    The vocabulary is written without padding: the trainer fills up with rows of zeros as its layout needs.
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
        """Append a tensor; of an expert, as its part of the tensor of all experts."""
        for key in filter(None, (entry.megatron, entry.also)):
            self._write_piece(key, entry, tensor)
        if entry.megatron.rsplit(".", 2)[-2].startswith("linear_") and entry.megatron.endswith(".weight"):
            # The trainer asks every linear layer for its state beside the weight, empty without fp8.
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
        # A view would be saved with the whole of what it is a view of.
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
            # Where the file refuses a write, torch fails once more while closing its archive.
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        self._places[index] = _StorageInfo(Path(self._file.name).name, start, self._file.tell() - start)

    def _next_file(self) -> BinaryIO:
        if self._files:
            self._file.close()
        self._files += 1
        return (self._folder / f"__0_{self._files - 1}.distcp").open("wb")

    def finish(self) -> None:
        """Write what makes the pieces a checkpoint: common state, metadata, manifest, tracker."""
        self._write_object(_COMMON, [_common_state(self._model)])
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
        """Close the open file; also where the conversion failed."""
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
