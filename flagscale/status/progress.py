"""The progress of a training, read from the end of its metrics file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

TAIL_BYTES = 32768
_RECENT = 20


@dataclass(frozen=True)
class Evaluation:
    """A loss on validation or test data."""

    value: float
    iteration: int


@dataclass(frozen=True)
class Progress:
    """The newest logged iteration, and the seconds left at the recent pace (None if the end is unknown)."""

    record: dict[str, Any]
    seconds_left: float | None
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    """The newest recent evaluations by key in the metrics: `validation_loss`, or `validation_loss/NAME`."""

    @property
    def iteration(self) -> int:
        return int(self.record["iteration"])

    @property
    def train_iters(self) -> int | None:
        total = self.record.get("train_iters")
        return int(total) if total else None


def read_progress(tail: bytes, since: float = 0.0) -> Progress | None:
    """Return the progress given by the last `TAIL_BYTES` of a metrics file (or all of it, if it is shorter).

    None before its first line at or after the time `since`. A line that is being written at this moment is
    ignored until the next call.
    """
    logged = [record for record in records_of(tail) if record.get("time", 0.0) >= since]
    records = [record for record in logged if "iteration_ms" in record]
    if not records:
        return None
    last = records[-1]
    total = last.get("train_iters")
    pace = fmean(float(record["iteration_ms"]) for record in records[-_RECENT:]) / 1000
    left = max(0, int(total) - int(last["iteration"])) * pace if total else None
    return Progress(last, left, _evaluations(logged))


def _evaluations(records: Sequence[Mapping[str, Any]]) -> dict[str, Evaluation]:
    """Return the newest evaluation by key."""
    return {
        key: Evaluation(value, int(record["iteration"]))
        for record in records
        for key, value in record.items()
        if key.startswith(("validation_", "test_")) and isinstance(value, float)
    }


def records_of(tail: bytes, size: int = TAIL_BYTES) -> Iterator[dict[str, Any]]:
    """Yield the records of iterations and evaluations, oldest first, from the last `size` bytes of a file."""
    # The first piece may be the end of a line; the last one is an incomplete line.
    for line in tail.split(b"\n")[1 if len(tail) >= size else 0 : -1]:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "iteration" in record:
            yield record
