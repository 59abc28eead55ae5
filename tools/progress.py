"""Show the progress of a tool on stderr: a bar in a terminal, otherwise a line every few seconds."""

import sys
import time
from typing import TYPE_CHECKING, Self

from flagscale.formats import duration, quantity

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Progress measured in bytes; use it as a context manager."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._counts: dict[str, float] = {}
        self._started = self._printed = time.monotonic()
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._open_bar()
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if failed is None:
            self._done = self._total  # count what was skipped without a call
        self._print()
        if self._bar is not None:
            self._bar.stop()

    def advance(self, size: int, **counts: float) -> None:
        """Add `size` bytes to the progress, and `counts` (amounts by unit) to the totals shown as rates."""
        self._done += size
        for unit, count in counts.items():
            self._counts[unit] = self._counts.get(unit, 0) + count
        # The last line is printed at the end and includes everything that was skipped.
        is_due = time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES and self._done < self._total
        if self._bar is not None or is_due:
            self._print()

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
        self._bar = Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
        self._task = self._bar.add_task("", total=self._total)
        self._bar.start()

    def _print(self) -> None:
        self._printed = time.monotonic()
        elapsed = max(self._printed - self._started, 1e-3)
        rates = [f"{quantity(count / elapsed)} {unit}/s" for unit, count in self._counts.items()]
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, description=", ".join(rates))
        else:
            share = 100 * self._done / max(self._total, 1)
            print(
                ", ".join([f"{share:3.0f} % after {duration(elapsed)}", *rates]), file=sys.stderr, flush=True
            )
