"""Check Megatron's `.bin/.idx` pair with the standard library only, before an engine opens it.

The `.idx` file (little-endian): 9 bytes of magic, version u64 = 1, dtype u8, sequences S u64,
documents + 1 = D u64, then S lengths i32, S byte offsets i64, D document bounds i64 and, for multimodal data,
S modes i8.
The `.bin` file is the tokens of all sequences, one after the other.
"""

import os
import struct
import sys
from array import array
from bisect import bisect_right
from dataclasses import dataclass
from operator import le
from pathlib import Path
from typing import BinaryIO

MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {
    1: ("uint8", 1), 2: ("int8", 1), 3: ("int16", 2), 4: ("int32", 4),
    5: ("int64", 8), 6: ("float64", 8), 7: ("float32", 4), 8: ("uint16", 2),
}  # fmt: skip
_FLOATS = (6, 7)
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Summary:
    """The contents of a pair."""

    documents: int
    sequences: int
    tokens: int
    dtype: str
    size: int
    """Bytes of both files."""


def bin_path(prefix: Path) -> Path:
    """Return the token file of a prefix (which may itself contain dots)."""
    return prefix.with_name(prefix.name + ".bin")


def idx_path(prefix: Path) -> Path:
    """Return the index file of a prefix."""
    return prefix.with_name(prefix.name + ".idx")


def problems(prefix: Path, *, thorough: bool = False) -> list[str]:
    """Return why `<prefix>.bin` and `<prefix>.idx` cannot be used, one message each; empty if sound.

    Reads a few bytes, whatever the size of the data; `thorough` also reads every length, offset and bound.
    """
    found = []
    for path in (bin_path(prefix), idx_path(prefix)):
        if not os.path.isfile(path):
            hint = f"; give the prefix without {prefix.suffix}" if prefix.suffix in (".bin", ".idx") else ""
            found.append(f"{path}: {'not a file' if os.path.exists(path) else 'no such file'}{hint}")
        elif not os.access(path, os.R_OK):
            found.append(f"{path}: no permission to read it")
    if found:
        return found
    problem = _problem(prefix, thorough)
    return [problem] if problem else []


def summary(prefix: Path) -> Summary:
    """Return the contents of a sound pair (call `problems` first)."""
    with idx_path(prefix).open("rb") as idx:
        _, _, code, sequences, bounds = _HEADER.unpack(idx.read(_HEADER.size))
    dtype, itemsize = _DTYPES[code]
    tokens_size = bin_path(prefix).stat().st_size
    size = tokens_size + idx_path(prefix).stat().st_size
    return Summary(bounds - 1, sequences, tokens_size // itemsize, dtype, size)


def document_at(prefix: Path, document: int) -> tuple[int, int]:
    """Return the range of tokens of a document of a sound pair, both counted from 0."""
    with idx_path(prefix).open("rb") as idx:
        _, _, _, sequences, _ = _HEADER.unpack(idx.read(_HEADER.size))
        bounds_at = _HEADER.size + sequences * (4 + 8)
        begin, end = (_read(idx, "q", bounds_at + (document + more) * 8) for more in (0, 1))
    first = tokens_between(prefix, 0, begin)
    return first, first + tokens_between(prefix, begin, end)


def tokens_between(prefix: Path, begin: int, end: int) -> int:
    """Return the number of tokens of the sequences `begin` to `end` (exclusive) of a sound pair."""
    if end <= begin:
        return 0
    with idx_path(prefix).open("rb") as idx:
        _, _, code, sequences, _ = _HEADER.unpack(idx.read(_HEADER.size))
        offsets_at = _HEADER.size + sequences * 4
        bounds = [
            _read(idx, "q", offsets_at + sequence * 8)
            if sequence < sequences
            else bin_path(prefix).stat().st_size
            for sequence in (begin, end)
        ]
    return (bounds[1] - bounds[0]) // _DTYPES[code][1]


def lengths(prefix: Path) -> "array[int]":
    """Return the number of tokens of each sequence of a sound pair; reads 4 bytes per sequence."""
    with idx_path(prefix).open("rb") as idx:
        _, _, _, sequences, _ = _HEADER.unpack(idx.read(_HEADER.size))
        return _read_array(idx, "i", _HEADER.size, sequences)


def sequence_at(prefix: Path, token: int) -> int:
    """Return the sequence of a sound pair that contains this token, both counted from 0."""
    with idx_path(prefix).open("rb") as idx:
        _, _, code, sequences, _ = _HEADER.unpack(idx.read(_HEADER.size))
        offsets_at = _HEADER.size + sequences * 4
        position = token * _DTYPES[code][1]
        return bisect_right(range(sequences), position, key=lambda n: _read(idx, "q", offsets_at + n * 8)) - 1


def _problem(prefix: Path, thorough: bool) -> str | None:
    """Return the first problem of two readable files: each check relies on those before it."""
    bin_file, idx_file = bin_path(prefix), idx_path(prefix)
    idx_size, bin_size = idx_file.stat().st_size, bin_file.stat().st_size
    with idx_file.open("rb") as idx:
        header = idx.read(_HEADER.size)
        if header[: len(MAGIC)] != MAGIC[: len(header)]:
            if _starts_with_magic(bin_file):
                return f"{idx_file}: this is the .bin file: the two files are swapped"
            return f"{idx_file}: not a Megatron index (it does not start with {MAGIC!r})"
        if len(header) < _HEADER.size:
            return f"{idx_file}: truncated: {idx_size} bytes, but the header alone takes {_HEADER.size}"

        _, version, code, sequences, bounds = _HEADER.unpack(header)
        if version != 1:
            return f"{idx_file}: version {version} is not supported, only version 1"
        if code not in _DTYPES:
            return f"{idx_file}: unknown dtype code {code} (known: {', '.join(map(str, _DTYPES))})"
        if code in _FLOATS:
            return f"{idx_file}: contains {_DTYPES[code][0]} values, but token ids must be integers"
        expected = _HEADER.size + sequences * (4 + 8) + bounds * 8
        if idx_size not in (expected, expected + sequences):  # the second: with the modes of multimodal data
            return f"{idx_file}: {_cut(idx_size, expected)}: {idx_size} bytes, but its header says {expected}"
        if sequences == 0 or bounds < 2:
            return f"{idx_file}: contains no documents"

        lengths_at, offsets_at = _HEADER.size, _HEADER.size + sequences * 4
        bounds_at = offsets_at + sequences * 8
        last_length = _read(idx, "i", lengths_at + (sequences - 1) * 4)
        last_offset = _read(idx, "q", offsets_at + (sequences - 1) * 8)
        first_bound, last_bound = _read(idx, "q", bounds_at), _read(idx, "q", bounds_at + (bounds - 1) * 8)
        if (first_bound, last_bound) != (0, sequences):
            return f"{idx_file}: damaged: documents span {first_bound} to {last_bound}, not 0 to {sequences}"
        itemsize = _DTYPES[code][1]
        if thorough and (torn := _first_torn_sequence(idx, sequences, itemsize)) is not None:
            return f"{idx_file}: damaged: sequence {torn} does not start where the previous one ends"
        if thorough and (fallen := _first_falling_bound(idx, bounds_at, bounds)) is not None:
            return f"{idx_file}: damaged: document {fallen} ends before it starts"

    expected = last_offset + last_length * itemsize
    if last_length < 0 or last_offset < 0:
        return f"{idx_file}: damaged: the last sequence has length {last_length} at byte {last_offset}"
    if bin_size != expected:
        return f"{bin_file}: {_cut(bin_size, expected)}: {bin_size} bytes, but the index says {expected}"
    if bin_size == 0:
        return f"{bin_file}: contains no tokens"
    return None


def _cut(size: int, expected: int) -> str:
    return "truncated" if size < expected else "too long"


def _starts_with_magic(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _read(file: BinaryIO, typecode: str, position: int) -> int:
    file.seek(position)
    (value,) = struct.unpack(f"<{typecode}", file.read(struct.calcsize(f"<{typecode}")))
    return int(value)


def _first_torn_sequence(idx: BinaryIO, sequences: int, itemsize: int) -> int | None:
    """Return the first sequence that has a negative length or does not start where the previous one ends."""
    position = 0
    for start in range(0, sequences, _CHUNK):
        count = min(_CHUNK, sequences - start)
        sizes = _read_array(idx, "i", _HEADER.size + start * 4, count)
        offsets = _read_array(idx, "q", _HEADER.size + sequences * 4 + start * 8, count)
        for number, (length, offset) in enumerate(zip(sizes, offsets, strict=True), start):
            if offset != position or length < 0:
                return number
            position += length * itemsize
    return None


def _first_falling_bound(idx: BinaryIO, bounds_at: int, bounds: int) -> int | None:
    """Return the first document whose end is before its start; all bounds are then within 0 and the last."""
    for start in range(0, bounds - 1, _CHUNK):
        count = min(_CHUNK + 1, bounds - start)  # one more: the start of the next chunk's first document
        values = _read_array(idx, "q", bounds_at + start * 8, count)
        if not all(map(le, values, values[1:])):
            return start + next(n for n in range(count - 1) if values[n] > values[n + 1])
    return None


def _read_array(file: BinaryIO, typecode: str, position: int, count: int) -> "array[int]":
    file.seek(position)
    values = array(typecode, file.read(count * struct.calcsize(f"<{typecode}")))
    if sys.byteorder == "big":
        values.byteswap()
    return values
