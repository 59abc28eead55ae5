"""The tensors in a safetensors file, from its header, and whether two of them hold the same values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

_MOST_HEADER = 100 << 20
"""Bytes; safetensors itself refuses longer headers."""
_LFS = b"version "
"""The first 8 bytes of the text that stands for a file in a Git repository cloned without Git LFS."""
_PIECE, _PIECES = 4096, 64


class Stored(NamedTuple):
    """A tensor in a file; `dtype` is the code of safetensors (`BF16`), `start` and `size` are in bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def stored_in(file: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file by name; raises ValueError if it is damaged."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            lead = opened.read(8)
            if lead == _LFS:
                raise ValueError(f"{file}: only a Git LFS pointer; download the file itself (`git lfs pull`)")
            length = int.from_bytes(lead, "little")
            if size < 8 or length > min(size - 8, _MOST_HEADER):
                raise ValueError(f"{file}: damaged or truncated, or not a safetensors file")
            text = opened.read(length)
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror or 'cannot be read'}") from None
    first = 8 + length
    try:
        stored = {}
        for name, entry in json.loads(text).items():
            if name != "__metadata__":
                start, end = map(int, entry["data_offsets"])
                shape = tuple(map(int, entry["shape"]))
                stored[name] = Stored(file, str(entry["dtype"]), shape, first + start, end - start)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ValueError(f"{file}: its header cannot be read") from None
    wanted = max((one.start + one.size for one in stored.values()), default=first)
    if size != wanted:
        raise ValueError(f"{file}: damaged or truncated: {size} bytes long, but its header says {wanted}")
    return stored


def same_values(one: Stored, other: Stored) -> bool:
    """Return whether two tensors are alike: compares samples of at most 256 KiB, so a command stays fast."""
    if (one.dtype, one.shape, one.size) != (other.dtype, other.shape, other.size):
        return False
    step = max(one.size // _PIECES, _PIECE)
    with one.file.open("rb") as first, other.file.open("rb") as second:
        for offset in range(0, one.size, step):
            length = min(_PIECE, one.size - offset)
            first.seek(one.start + offset)
            second.seek(other.start + offset)
            if first.read(length) != second.read(length):
                return False
    return True
