"""`.bin/.idx` pairs: of a few tokens, written byte by byte so that a test can write wrong ones, and read."""

import struct
from pathlib import Path

from flagscale.checks.indexed import MAGIC, bin_path, idx_path

LENGTHS = [3, 1, 5]


def write_pair(
    prefix: Path,
    lengths: list[int] = LENGTHS,
    tokens: bytes | None = None,
    *,
    version: int = 1,
    code: int = 8,
    itemsize: int = 2,
) -> None:
    """Write a pair as megatron-core does, with one sequence per document; the tokens are 0 if not given."""
    count = len(lengths)
    offsets = [sum(lengths[:index]) * itemsize for index in range(count)]
    header = struct.pack("<9sQBQQ", MAGIC, version, code, count, count + 1)
    arrays = struct.pack(f"<{count}i", *lengths)
    arrays += struct.pack(f"<{2 * count + 1}q", *offsets, *range(count + 1))
    idx_path(prefix).write_bytes(header + arrays)
    bin_path(prefix).write_bytes(bytes(max(0, sum(lengths)) * itemsize) if tokens is None else tokens)


def documents_in(prefix: Path) -> list[list[int]]:
    """Return every document's tokens, as Megatron reads them."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(prefix))  # must outlive its views
    return [tokens.tolist() for tokens in dataset[:]]
