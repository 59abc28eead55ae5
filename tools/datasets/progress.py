"""How far the preparation is, on stderr: a bar in a terminal, else a plain line every few seconds."""

import sys
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Counts what is done, measured in bytes of the source; use as a context manager."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = self._documents = self._tokens = 0
        self._started = self._told = time.monotonic()
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._open_bar()
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if failed is None:
            self._done = self._total  # blank and skipped text was passed over without a call
        self._tell()
        if self._bar is not None:
            self._bar.stop()

    def advance(self, size: int, documents: int = 0, tokens: int = 0) -> None:
        """`size` bytes more are done; `documents` and `tokens`, for the rates, count what was made now."""
        self._done += size
        self._documents += documents
        self._tokens += tokens
        if self._bar is not None or time.monotonic() - self._told >= _SECONDS_BETWEEN_LINES:
            self._tell()

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

    def _tell(self) -> None:
        self._told = time.monotonic()
        elapsed = max(self._told - self._started, 1e-3)
        rates = f"{self._documents / elapsed:,.0f} documents/s, {self._tokens / elapsed:,.0f} tokens/s"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, description=rates)
        else:
            share = 100 * self._done / max(self._total, 1)
            print(f"{share:3.0f} % after {elapsed:.0f} s, {rates}", file=sys.stderr, flush=True)
