"""Small `.bin/.idx` pairs, as another tool than ours would write them."""

from __future__ import annotations

import struct
from pathlib import Path


def write_pair(prefix: Path, documents: tuple[int, ...] = (5, 3), token: int = 1) -> str:
    """Write a sound pair of uint16 documents of these lengths, all of one token, and return its prefix."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    starts = [2 * sum(documents[:index]) for index in range(len(documents))]
    count = len(documents)
    prefix.with_name(prefix.name + ".bin").write_bytes(struct.pack("<H", token) * sum(documents))
    prefix.with_name(prefix.name + ".idx").write_bytes(
        struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, count, count + 1)
        + struct.pack(f"<{count}i{count}q{count + 1}q", *documents, *starts, *range(count + 1))
    )
    return str(prefix)
