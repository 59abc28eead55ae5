"""Write the weights of a Hugging Face folder: safetensors, one tensor at a time. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Buffer, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from flagscale.checks.weight_files import INDEX, WHOLE
from flagscale.files import write_atomic

SHARD_BYTES = 5 * 10**9
"""The usual size of a shard: that of `save_pretrained`."""


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written; `dtype` is the code of safetensors (`BF16`), `size` is in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


class WeightWriter:
    """Writes planned tensors in order, and nothing but pieces of the current one is in memory.

    A shard starts with the names, shapes and offsets of all its tensors. It is at most `shard_bytes` long,
    unless a single tensor is longer.
    """

    def __init__(
        self, folder: Path, planned: Iterable[Planned], shard_bytes: int, whole: str = WHOLE
    ) -> None:
        """`whole` is the name of the file if there is only one."""
        self._folder, self._whole = folder, whole
        self._shards = _divided(planned, shard_bytes)
        self._places = self._numbered()
        self._number = -1
        self._current, self._left = "", 0
        self._file: BinaryIO | None = None

    def append(self, name: str, pieces: Iterable[Buffer]) -> None:
        """Write the bytes of the next tensor, which must have this name, or of the current one's rest."""
        if not self._left:
            number, planned = next(self._places)
            self._current, self._left = planned.name, planned.size
            if number != self._number:
                self._open(number)
        assert self._file is not None
        assert name == self._current
        self._left -= sum(map(self._file.write, pieces))
        assert self._left >= 0

    def finish(self) -> None:
        """Close the last shard; write the index if there are several."""
        self.close()
        assert (self._left, next(self._places, None)) == (0, None), "not every tensor was written"
        if len(self._shards) > 1:
            places = {one.name: self._name(number) for number, one in self._numbered()}
            index = {
                "metadata": {"total_size": sum(one.size for _, one in self._numbered())},
                "weight_map": places,
            }
            write_atomic(self._folder / INDEX, json.dumps(index, indent=2) + "\n")

    def close(self) -> None:
        """Close the open shard; call it after a failure, too."""
        if self._file is not None:
            self._file.close()

    def _numbered(self) -> Iterator[tuple[int, Planned]]:
        return ((number, one) for number, shard in enumerate(self._shards) for one in shard)

    def _name(self, number: int) -> str:
        count = len(self._shards)
        return self._whole if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"

    def _open(self, number: int) -> None:
        self.close()
        self._number = number
        self._file = (self._folder / self._name(number)).open("wb")
        self._file.write(_header(self._shards[number]))


def _divided(planned: Iterable[Planned], shard_bytes: int) -> list[list[Planned]]:
    shards: list[list[Planned]] = [[]]
    filled = 0
    for one in planned:
        if shards[-1] and filled + one.size > shard_bytes:
            shards.append([])
            filled = 0
        filled += one.size
        shards[-1].append(one)
    return shards


def _header(shard: Sequence[Planned]) -> bytes:
    """Return the header of a safetensors file: its length in 8 bytes, then JSON padded to 8 bytes."""
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for one in shard:
        start, end = end, end + one.size
        fields[one.name] = {"dtype": one.dtype, "shape": one.shape, "data_offsets": [start, end]}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
