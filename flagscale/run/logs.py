"""The logs of a run on a host: everything its processes print, and the streams of each rank.

A host's log holds one run after another, each after a header line. Logs grow to gigabytes, so nothing here
reads more of a log than necessary. torchrun keeps the streams of ranks in
`<log dir>/<rendezvous id>_<random>/attempt_<n>/<local rank>/`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from flagscale.run.rundir import RunDir
from flagscale.values import LaunchPlan, NodeCommand

_STREAMS = ("stdout.log", "stderr.log")


def rank_logs(node: NodeCommand) -> dict[int, tuple[Path, ...]]:
    """Return stdout and stderr of the newest attempt of each rank of this host, by local rank.

    Empty if the agent is not torchrun.
    """
    if not {"log-dir", "rdzv-id"} <= node.options.keys():
        return {}
    runs = Path(node.options["log-dir"]).glob(f"{_escaped(node.options['rdzv-id'])}_*")
    newest = max(runs, key=lambda folder: folder.stat().st_mtime, default=None)
    if newest is None:
        return {}
    found: dict[int, tuple[Path, ...]] = {}
    for attempt in sorted(
        newest.glob("attempt_*"), key=lambda folder: _number(folder.name.rpartition("_")[2])
    ):
        for rank in attempt.iterdir():
            files = tuple(rank / stream for stream in _STREAMS if (rank / stream).is_file())
            if files and rank.name.isdigit():
                found[int(rank.name)] = files
    return dict(sorted(found.items()))


def has_error(node: NodeCommand) -> bool:
    """Return whether a rank of this host's newest attempt has recorded an exception for torchrun."""
    return any((streams[0].parent / "error.json").exists() for streams in rank_logs(node).values())


def _escaped(name: str) -> str:
    """Return a glob pattern that matches a name literally."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _number(text: str) -> int:
    return int(text) if text.isdigit() else -1


_CHUNK = 1 << 16


def write_header(file: BinaryIO, run_id: str, host: str, when: str) -> None:
    """Write a run's header line to a log opened for appending; the last run may have ended within a line."""
    size = file.seek(0, os.SEEK_END)
    separator = b""
    if size:
        with open(file.name, "rb") as reading:
            reading.seek(size - 1)
            separator = b"" if reading.read(1) == b"\n" else b"\n"
    file.write(separator + f"=== run {run_id} on {host}, {when}\n".encode())
    file.flush()


def find_run(path: Path, run_id: str) -> int | None:
    """Return the position of a run's header line; None if the log has none."""
    mark = f"=== run {run_id} ".encode()
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            while end > 0:
                # Each chunk overlaps the one after it, so that a header across their boundary is found.
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
    """Return the last lines that a run printed; "" if there are none."""
    begin = find_run(path, run_id)
    if begin is None:
        return ""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(begin, end - _CHUNK))
        text = file.read().decode(errors="replace")
    kept = text.splitlines(keepends=True)
    # The first line is the header, or was cut by the chunk.
    return "".join(kept[1:][-lines:])


def path_of(plan: LaunchPlan, node: NodeCommand, name: str) -> Path:
    """Return the path of one of a run's files: `output` (the host's log), `metrics`, or `services` (their
    states)."""
    if name == "services":
        return RunDir(Path(plan.exp_dir)).services(node.host)
    if name == "metrics":
        return RunDir(Path(node.job_dir or plan.job_dir or plan.exp_dir)).metrics
    return RunDir(Path(plan.exp_dir)).output(node.host)


def read_piece(path: Path, position: int, size: int) -> tuple[bytes, int]:
    """Return up to `size` bytes from `position` (negative: from the end), and the size of the file."""
    try:
        with path.open("rb") as file:
            total = file.seek(0, 2)
            file.seek(position if position >= 0 else max(0, total + position))
            return file.read(size), total
    except (FileNotFoundError, NotADirectoryError):
        return b"", 0
