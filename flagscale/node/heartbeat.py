"""How long the ranks of a host have not gone on."""

from __future__ import annotations

import time
from pathlib import Path

_FIRST_BEAT = 600.0
"""Seconds that the ranks have to load and compile what they need, beyond the limit."""


class Heartbeat:
    """Watches the file that a rank touches whenever it goes on, from the start of an attempt.

    By this host's own clock, from the moment at which the file is seen to have changed: the time that is
    written in it is the file server's, and either may be set anew.
    """

    def __init__(self, beat: Path, limit: float | None) -> None:
        self._beat, self._limit = beat, limit
        self._seen = self._touched()
        self._since = time.monotonic()
        self._patience = (limit or 0.0) + _FIRST_BEAT

    def is_overdue(self) -> bool:
        """Whether they have not gone on for longer than the limit; never without one."""
        if self._limit is None:
            return False
        if (touched := self._touched()) != self._seen:
            self._seen, self._since, self._patience = touched, time.monotonic(), self._limit
        return time.monotonic() - self._since > self._patience

    def _touched(self) -> int:
        try:
            return self._beat.stat().st_mtime_ns
        except FileNotFoundError:
            return 0
