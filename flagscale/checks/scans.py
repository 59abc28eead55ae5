"""The range of the token ids in data that another tool made, remembered so that it is read once per host.

Data that `tools/datasets/preprocess.py` made has its facts beside it (`checks.facts`) and is not scanned.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from flagscale.checks import indexed
from flagscale.files import cache_file, write_atomic

_FORMAT = 1


def known_range(prefix: Path) -> tuple[int, int] | None:
    """Return the smallest and largest id of a pair if it was scanned and has not changed since."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        entry = json.loads(_file(prefix).read_text(encoding="utf-8"))
        if entry["stamp"] == _stamp(prefix):
            return int(entry["smallest"]), int(entry["largest"])
    return None


def remember_range(prefix: Path, smallest: int, largest: int) -> None:
    """Record the result of a scan; a home that is not writable only costs another scan."""
    entry = {
        "prefix": str(prefix.absolute()),
        "stamp": _stamp(prefix),
        "smallest": smallest,
        "largest": largest,
    }
    with suppress(OSError):
        write_atomic(_file(prefix), json.dumps(entry, indent=1))


def _file(prefix: Path) -> Path:
    return cache_file("data", f"{_FORMAT} {prefix.absolute()}")


def _stamp(prefix: Path) -> list[int]:
    found = [path.stat() for path in (indexed.bin_path(prefix), indexed.idx_path(prefix))]
    return [number for one in found for number in (one.st_size, one.st_mtime_ns, one.st_ino)]
