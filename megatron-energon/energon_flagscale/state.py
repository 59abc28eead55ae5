"""The place of each reader in the data, as JSON inside a checkpoint: `loader/rank_00003.json`.

A reader is a worker process of a data parallel rank, or the rank itself without workers. Energon 7.4.1 gives
each a part of the data that depends only on its number among all readers, so the places of ranks x workers
readers fit any other division of the same readers (as its own `energon checkpoint redist` does it).
JSON, because reading Energon's own files would run code that they contain.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from megatron.energon.flavors.webdataset.sample_loader import SliceState
from megatron.energon.rng import SystemRngState
from megatron.energon.savable_loader import (
    SavableDataLoaderState,
    SavableDatasetCheckpoint,
    SavableDatasetState,
    SimpleSavableDatasetWrapper,
)
from megatron.energon.state import FlexState
from megatron.energon.wrappers.gc_dataset import GcDataset

from flagscale.errors import UserError
from flagscale.files import write_atomic

FOLDER = "loader"
"""In a checkpoint, the folder with one file per data parallel rank."""
_VERSION = 1
_CLASSES = {
    one.__name__: one for one in (SavableDatasetCheckpoint, SavableDatasetState, SystemRngState, SliceState)
}
"""The classes of Energon in a state."""


@dataclass(frozen=True)
class Place:
    """The place of one rank's readers, and how many samples it has skipped so far."""

    readers: tuple[SavableDatasetCheckpoint, ...]
    """Of each reader a state, None at the beginning, and the number of micro-batches to discard after it."""
    next_reader: int = 0
    micro_batch_size: int | None = None
    skipped: int = 0


def place_of(state: SavableDataLoaderState | None, workers: int, skipped: int) -> Place:
    """Return the place that a loader of Energon with this many workers has saved; None: it has not begun."""
    if state is None:
        return Place(_beginnings(max(1, workers)), skipped=skipped)
    readers = state.worker_states
    if not workers:
        # Energon's loader without workers saves another form of the same state, always after a micro-batch.
        (own,) = readers
        collected = FlexState(__class__=GcDataset.__name__, datasets=own["datasets"])
        inner = SavableDatasetState(rng=None, dataset_state=collected, sample_index=own["_sample_index"])
        readers = [SavableDatasetCheckpoint(state=inner, offset=0)]
    return Place(tuple(readers), state.next_worker_id, state.micro_batch_size, skipped)


def loader_state(place: Place, workers: int) -> tuple[SavableDataLoaderState | None, int]:
    """Return what a loader of Energon restores, and the micro-batches that the caller then has to discard."""
    if all(reader.state is None and not reader.offset for reader in place.readers):
        return None, 0
    states: list[Any] = list(place.readers)
    discarded = 0
    if not workers:
        (reader,) = place.readers
        discarded = reader.offset
        if reader.state is None:
            return None, discarded
        states = [
            FlexState(
                __class__=SimpleSavableDatasetWrapper.__name__,
                _sample_index=reader.state.sample_index,
                datasets=reader.state.dataset_state["datasets"],
            )
        ]
    state = SavableDataLoaderState(
        worker_states=states, next_worker_id=place.next_reader, micro_batch_size=place.micro_batch_size
    )
    return state, discarded


def redistributed(places: Sequence[Place], ranks: int) -> list[Place]:
    """Return the places of the same readers, divided among `ranks` ranks; their number has to allow it."""
    if len(places) == ranks:
        return list(places)
    readers = [reader for place in places for reader in place.readers]
    each, rest = divmod(len(readers), ranks)
    assert not rest
    skipped = sum(place.skipped for place in places)
    return [
        Place(
            tuple(readers[rank * each : (rank + 1) * each]),
            micro_batch_size=places[0].micro_batch_size,
            skipped=skipped if rank == 0 else 0,
        )
        for rank in range(ranks)
    ]


def write(checkpoint: Path, rank: int, place: Place) -> None:
    """Write the place of a data parallel rank into the folder of a checkpoint."""
    folder = checkpoint / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    content = {"version": _VERSION, **{field: _plain(value) for field, value in _fields(place).items()}}
    write_atomic(_file(folder, rank), json.dumps(content))


def read(checkpoint: Path, saved_ranks: int, rank: int, ranks: int) -> Place:
    """Return the place of data parallel rank `rank` of `ranks` in a checkpoint that `saved_ranks` have saved.

    Raises:
        UserError: a file is missing or damaged.
    """
    folder = checkpoint / FOLDER
    if saved_ranks == ranks:
        return _read(folder, rank)
    return redistributed([_read(folder, number) for number in range(saved_ranks)], ranks)[rank]


def _file(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank:05d}.json"


def _read(folder: Path, rank: int) -> Place:
    path = _file(folder, rank)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("version") != _VERSION:
            raise ValueError("written by another version")
        place = Place(**{field: _original(value) for field, value in content.items()})
    except OSError as error:
        raise UserError(f"{path}: the loader's place in the data cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a loader's place in the data: {error}") from None
    return place


def _beginnings(count: int) -> tuple[SavableDatasetCheckpoint, ...]:
    return tuple(SavableDatasetCheckpoint(state=None, offset=0) for _ in range(count))


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _plain(value: Any) -> Any:
    """Return a state as JSON holds it: an object that JSON does not know is a dict with one key, its type."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, tuple):
        return {"tuple": [_plain(one) for one in value]}
    if isinstance(value, FlexState):
        return {"state": {key: _plain(one) for key, one in value.items()}}
    if isinstance(value, dict):
        return {"dict": [[_plain(key), _plain(one)] for key, one in value.items()]}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, numpy.integer):
        return int(value)
    if isinstance(value, numpy.ndarray):
        return {"array": [value.dtype.str, list(value.shape), base64.b64encode(value.tobytes()).decode()]}
    if isinstance(value, torch.Tensor):
        return {"tensor": _plain(value.numpy())}
    if type(value).__name__ in _CLASSES:
        return {type(value).__name__: {field: _plain(content) for field, content in _fields(value).items()}}
    raise TypeError(f"a loader's state holds a {type(value).__name__}")


def _original(value: Any) -> Any:
    """Return what `_plain` was called with."""
    if isinstance(value, list):
        return [_original(one) for one in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tuple":
        return tuple(_original(one) for one in content)
    if kind == "state":
        return FlexState({key: _original(one) for key, one in content.items()})
    if kind == "dict":
        return {_original(key): _original(one) for key, one in content}
    if kind == "bytes":
        return base64.b64decode(content)
    if kind == "array":
        dtype, shape, data = content
        return numpy.frombuffer(base64.b64decode(data), numpy.dtype(dtype)).reshape(shape).copy()
    if kind == "tensor":
        return torch.from_numpy(_original(content))
    return _CLASSES[kind](**{field: _original(one) for field, one in content.items()})
