"""Scan data for its token ids: `python -m megatron.flagscale.id_range PREFIX ...`, one JSON line per prefix.

A process of its own, because the launcher's node commands do not import numpy.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from flagscale.checks import indexed

_CHUNK = 1 << 26


def id_range(prefix: Path) -> tuple[int, int]:
    """Return the smallest and largest token id of a sound pair that has tokens."""
    import numpy

    dtype = numpy.dtype(indexed.summary(prefix).dtype).newbyteorder("<")
    smallest, largest = [], []
    with indexed.bin_path(prefix).open("rb") as tokens:
        while (ids := numpy.fromfile(tokens, dtype, _CHUNK // dtype.itemsize)).size:
            smallest.append(int(ids.min()))
            largest.append(int(ids.max()))
    return min(smallest), max(largest)


def main() -> None:
    """Print `{"prefix", "smallest", "largest"}` for each prefix of the command line."""
    for prefix in sys.argv[1:]:
        smallest, largest = id_range(Path(prefix))
        print(json.dumps({"prefix": prefix, "smallest": smallest, "largest": largest}), flush=True)


if __name__ == "__main__":
    main()
