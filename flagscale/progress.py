"""How far a run is: the end of its metrics.jsonl."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from flagscale.launch.launcher import Done

TAIL_BYTES = 32768
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


def read_progress(tail: bytes, since: float = 0.0) -> Progress | None:
    """Return the progress told by the last `TAIL_BYTES` of a metrics file (all of it, where it is shorter).

    None before its first line at or after the time `since`; a line being written at this moment is left for
    the next time.
    """
    records = [record for record in _records(tail) if record.get("time", 0.0) >= since]
    if not records:
        return None
    last = records[-1]
    total = last.get("train_iters")
    pace = fmean(float(record["iteration_ms"]) for record in records[-_RECENT:]) / 1000
    return Progress(last, max(0, int(total) - int(last["iteration"])) * pace if total else None)


def _records(tail: bytes) -> Iterator[dict[str, Any]]:
    """Yield the records of training iterations, oldest first; validation has lines of its own."""
    # The first piece may be the end of a line, the last one is a line that is not complete yet.
    for line in tail.split(b"\n")[1 if len(tail) >= TAIL_BYTES else 0 : -1]:
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
    if record.get("skipped"):
        parts.append(f"{record['skipped']} skipped")
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


@contextmanager
def counted(what: str, hosts: int) -> Iterator[Done | None]:
    """Show how many of many hosts have done something: a bar in a terminal, a line a second otherwise."""
    if hosts == 1:
        yield None
    elif sys.stderr.isatty():
        with Bar(TextColumn(what), BarColumn(), MofNCompleteColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=hosts)
            yield lambda done, total: bar.update(task, completed=done)
    else:
        told = [time.monotonic()]

        def tell(done: int, total: int) -> None:
            if done == total or time.monotonic() - told[0] >= 1:
                told[0] = time.monotonic()
                print(f"{what}: {done} of {total} hosts", file=sys.stderr, flush=True)

        yield tell
