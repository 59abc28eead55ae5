"""A host's log: everything its processes print, one run after another, each behind a header line.

Logs grow to gigabytes, so nothing here reads more of one than it has to.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_CHUNK = 1 << 16


def write_header(file: BinaryIO, run_id: str, host: str, when: str) -> None:
    """Begin a run in a log opened for appending; the last run may have ended within a line."""
    size = file.seek(0, os.SEEK_END)
    separator = b""
    if size:
        with open(file.name, "rb") as reading:
            reading.seek(size - 1)
            separator = b"" if reading.read(1) == b"\n" else b"\n"
    file.write(separator + f"=== run {run_id} on {host}, {when}\n".encode())
    file.flush()


def find_run(path: Path, run_id: str) -> int | None:
    """Return where a run's header line begins, None where the log has none."""
    mark = f"=== run {run_id} ".encode()
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            while end > 0:
                # Each chunk overlaps the one after it, so that a header across their border is seen.
                start = max(0, end - _CHUNK)
                file.seek(start)
                found = file.read(end - start + len(mark) - 1).rfind(mark)
                if found >= 0:
                    return start + found
                end = start
    except FileNotFoundError:
        pass
    return None


def last_lines(path: Path, run_id: str, lines: int) -> str:
    """Return the last lines that a run printed, "" where there are none."""
    begin = find_run(path, run_id)
    if begin is None:
        return ""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(begin, end - _CHUNK))
        text = file.read().decode(errors="replace")
    kept = text.splitlines(keepends=True)
    # The first one is the header, or a line cut by the chunk.
    return "".join(kept[1:][-lines:])
