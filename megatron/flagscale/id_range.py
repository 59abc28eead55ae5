"""Scan data for its token ids: `python -m megatron.flagscale.id_range PREFIX ...`, one JSON line per prefix.

A process of its own, because the launcher's node commands do not import numpy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flagscale.checks import indexed

_CHUNK = 1 << 26
"""Bytes that are read at a time."""


def id_range(prefix: Path) -> tuple[int, int]:
    """Return the smallest and largest token id of a sound pair, which has tokens."""
    ranges = [(int(ids.min()), int(ids.max())) for ids in _chunks(prefix)]
    return min(smallest for smallest, _ in ranges), max(largest for _, largest in ranges)


def first_sequence_outside(prefix: Path, vocabulary: int) -> int | None:
    """Return the first sequence of a sound pair that holds an id below 0, or of `vocabulary` or more."""
    position = 0
    for ids in _chunks(prefix):
        outside = ((ids < 0) | (ids >= vocabulary)).nonzero()[0]
        if outside.size:
            return indexed.sequence_at(prefix, position + int(outside[0]))
        position += ids.size
    return None


def _chunks(prefix: Path) -> Iterator[Any]:
    import numpy

    dtype = numpy.dtype(indexed.summary(prefix).dtype).newbyteorder("<")
    with indexed.bin_path(prefix).open("rb") as tokens:
        while (ids := numpy.fromfile(tokens, dtype, _CHUNK // dtype.itemsize)).size:
            yield ids


def main() -> None:
    """Print `{"prefix", "smallest", "largest"}` for each prefix of the command line."""
    for prefix in sys.argv[1:]:
        smallest, largest = id_range(Path(prefix))
        print(json.dumps({"prefix": prefix, "smallest": smallest, "largest": largest}), flush=True)


if __name__ == "__main__":
    main()
