"""How far a run is: the last lines of its metrics.jsonl."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

_TAIL_BYTES = 32768
_RECENT = 20


@dataclass(frozen=True)
class Progress:
    """The newest logged iteration, and the seconds left at the recent pace (None where no end is known)."""

    record: dict[str, Any]
    seconds_left: float | None

    @property
    def iteration(self) -> int:
        return int(self.record["iteration"])

    @property
    def train_iters(self) -> int | None:
        total = self.record.get("train_iters")
        return int(total) if total else None


def read_progress(path: Path, since: float = 0.0) -> Progress | None:
    """Return the progress told by a metrics file; None before its first line at or after the time `since`.

    Reads only the end of the file; a line being written at this moment is left for the next time.
    """
    records = [record for record in _last_records(path) if record.get("time", 0.0) >= since]
    if not records:
        return None
    last = records[-1]
    total = last.get("train_iters")
    pace = fmean(float(record["iteration_ms"]) for record in records[-_RECENT:]) / 1000
    return Progress(last, max(0, int(total) - int(last["iteration"])) * pace if total else None)


def _last_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the last records of training iterations, oldest first; validation has lines of its own."""
    try:
        with path.open("rb") as file:
            begin = max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES)
            file.seek(begin)
            lines = file.read().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return
    # The first piece may be the end of a line, the last one is a line that is not complete yet.
    for line in lines[1 if begin else 0 : -1]:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "iteration" in record and "iteration_ms" in record:
            yield record


def progress_text(progress: Progress) -> str:
    """Return one line: `iteration 120/160  loss 5.912  3.1k tokens/s  0.4 TFLOP/s a device  1m03s left`."""
    record = progress.record
    total = f"/{progress.train_iters}" if progress.train_iters else ""
    parts = [f"iteration {progress.iteration}{total}"]
    if isinstance(record.get("lm_loss"), int | float):
        parts.append(f"loss {record['lm_loss']:.4f}")
    if isinstance(record.get("tokens_per_s"), int | float):
        parts.append(f"{quantity(record['tokens_per_s'])} tokens/s")
    if isinstance(record.get("tflops_per_gpu"), int | float):
        parts.append(f"{record['tflops_per_gpu']:.3g} TFLOP/s a device")
    if progress.seconds_left:
        parts.append(f"{duration(progress.seconds_left)} left")
    return "  ".join(parts)


def quantity(number: float) -> str:
    """Return 3120.0 as `3.1k`."""
    for unit in ("", "k", "M"):
        if abs(number) < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}G"


def duration(seconds: float) -> str:
    """Return 63.4 as `1m03s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
