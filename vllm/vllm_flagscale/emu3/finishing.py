"""A server that is stopped finishes the pictures that it has begun."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_POLL = 0.02


class Begun:
    """The pictures that are being drawn or decoded, and whether new ones are still accepted."""

    def __init__(self) -> None:
        self.requests = 0
        self.is_stopping = False

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count a request while it runs."""
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1


def finish_before_shutdown(engine: Any, begun: Begun) -> None:
    """Make the engine client's `shutdown` wait for pictures first, as long as requests may take to finish.

    vLLM 0.32 (`entrypoints/launchers/launcher.py`) calls it, in a thread, when the server receives SIGTERM.
    From then on the engine finishes its requests, but refuses calls like that for decoding
    (`v1/engine/core.py`, `_reject_utility_in_shutdown`): without this, a picture that is drawn would be lost.
    """
    shutdown = engine.shutdown

    def after_pictures(timeout: float | None = None) -> None:
        is_first, begun.is_stopping = not begun.is_stopping, True
        if is_first and timeout:
            due = time.monotonic() + timeout
            while begun.requests and time.monotonic() < due:
                time.sleep(_POLL)
            timeout = max(due - time.monotonic(), _POLL)
        shutdown(timeout=timeout)

    engine.shutdown = after_pictures
