"""A program on a host as the launcher uses it: lines go in, lines come out, whatever carries them."""

from __future__ import annotations

from threading import BoundedSemaphore
from typing import Protocol

HANDSHAKES = BoundedSemaphore(64)
"""The number of simultaneous handshakes: each has a time limit, and all share the cores of this machine."""


def handshakes_wait() -> bool:
    """Return whether further handshakes have to wait: this machine is busy with those of many hosts."""
    is_free = HANDSHAKES.acquire(blocking=False)
    if is_free:
        HANDSHAKES.release()
    return not is_free


class Unreachable(Exception):
    """A host cannot be reached; the message says why, and how to fix it if that is known."""


class Ended(Unreachable):
    """The host was reached, but the program there has ended."""


class Pipe(Protocol):
    """The standard streams of one program on a host; used by one thread at a time.

    It is closed with its last reference, and when this process ends; then the program has no more input.
    """

    def send(self, line: str) -> None:
        """Write a line, complete with its newline."""

    def receive(self, seconds: float) -> str:
        """Return the next line, complete with its newline.

        Raises:
            TimeoutError: there is none within this time.
            EOFError: the program has ended.
            ConnectionError: the connection was lost.
        """
        ...

    def is_open(self) -> bool:
        """Return whether the program can still answer, as far as this is known."""
        ...

    def last_words(self) -> str:
        """Return what the program, or the connection, reported last."""
        ...

    def close(self) -> None:
        """End the connection."""
