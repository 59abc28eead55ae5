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
    # Without a home directory, Python raises RuntimeError.
    with suppress(OSError, ValueError, KeyError, TypeError, RuntimeError):
        entry = json.loads(_file(prefix).read_text(encoding="utf-8"))
        if entry["stamp"] == stamp(prefix):
            return int(entry["smallest"]), int(entry["largest"])
    return None


def remember_range(prefix: Path, scanned: list[int], smallest: int, largest: int) -> None:
    """Record the result of a scan of files with the stamp `scanned`, taken before it began.

    A home that is not writable only costs another scan.
    """
    found = {"smallest": smallest, "largest": largest}
    entry = {"prefix": str(prefix.absolute()), "stamp": scanned, **found}
    with suppress(OSError, RuntimeError):
        write_atomic(_file(prefix), json.dumps(entry, indent=1))


def stamp(prefix: Path) -> list[int]:
    """Return numbers that change if a file of a pair is written or replaced."""
    found = [path.stat() for path in (indexed.bin_path(prefix), indexed.idx_path(prefix))]
    return [number for one in found for number in (one.st_size, one.st_mtime_ns, one.st_ino)]


def _file(prefix: Path) -> Path:
    return cache_file("data", f"{_FORMAT} {prefix.absolute()}")
