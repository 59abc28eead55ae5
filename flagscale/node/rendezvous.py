"""What the supervisors of a run's hosts tell each other, so that all begin together and none outlives it.

A star: the supervisor of the first host listens (`Coordinator`), the others connect to it (`Member`). Each
attempt of the job begins when every host is ready; when one host's part fails, is stopped, or is not heard of
any more, all others are told and end theirs.
"""

from __future__ import annotations

import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Literal, Protocol

from flagscale.node.channel import Link, LinkLost, Message

_PUMP = 0.5
"""The longest time between two looks at the links, which have to hear of this side every second."""
_LOOK = 0.1
COMING_BACK = 10.0
"""Seconds after which a supervisor that closed its connection and made no new one counts as gone."""


@dataclass(frozen=True)
class AttemptStart:
    """An attempt begins; `hosts` are the ranks of those that take part, in order; empty: as planned."""

    attempt: int
    hosts: tuple[int, ...]


@dataclass(frozen=True)
class Verdict:
    """Why a host's part in an attempt has ended, or cannot begin."""

    attempt: int
    kind: Literal["failed", "hung", "stopped", "finished"]
    host: int
    text: str
    is_final: bool = False
    """Whether another attempt would end alike."""


class Peers(Protocol):
    """The other hosts of the run, as a supervisor sees them."""

    def rendezvous(self, attempt: int, seconds: float, stopped: Callable[[], bool]) -> AttemptStart | Verdict:
        """Wait until all hosts are ready for an attempt; a `Verdict` says why it cannot begin."""
        ...

    def verdict(self) -> Verdict | None:
        """Return what ends the present attempt on all hosts, None while nothing does."""
        ...

    def tell(self, verdict: Verdict) -> None:
        """Let all other hosts know how this host's part has ended."""
        ...

    def close(self) -> None:
        """Send what is still to be sent, and leave."""
        ...


class Alone:
    """One host: there is nobody to wait for."""

    def rendezvous(self, attempt: int, seconds: float, stopped: Callable[[], bool]) -> AttemptStart | Verdict:
        return AttemptStart(attempt, ())

    def verdict(self) -> Verdict | None:
        return None

    def tell(self, verdict: Verdict) -> None:
        pass

    def close(self) -> None:
        pass


class ChannelEnd(ABC):
    """What both ends of the star have: a thread that owns the links, and the verdict that was given."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._attempt = -1
        self._verdict: Verdict | None = None
        self._outbox: list[Message] = []
        self._closing = threading.Event()
        self._bell, self._cord = socket.socketpair()
        for end in (self._bell, self._cord):
            end.setblocking(False)
        self._thread = threading.Thread(target=self._pump, daemon=True)

    def verdict(self) -> Verdict | None:
        with self._lock:
            return self._verdict

    def close(self) -> None:
        self._closing.set()
        self._ring()
        self._thread.join()

    def _begin(self, attempt: int) -> bool:
        """Forget the verdict of the last attempt (lock held); False where that was a stop, which stays."""
        self._attempt = attempt
        if self._is_stopped():
            return False
        self._verdict = None
        return True

    def _take(self, verdict: Verdict) -> bool:
        """Keep the first verdict of this attempt, and a stop at any time; False if nothing changes."""
        if verdict.kind == "stopped":
            is_new = not self._is_stopped()
        else:
            is_new = self._verdict is None and verdict.attempt == self._attempt
        if is_new:
            self._verdict = verdict
        return is_new

    def _is_stopped(self) -> bool:
        return self._verdict is not None and self._verdict.kind == "stopped"

    def _ring(self) -> None:
        """Have the thread look at once."""
        with suppress(OSError):  # it rings already, or has left
            self._cord.send(b"!")

    def _pump(self) -> None:
        while True:
            wait([self._bell.fileno(), *(link.fileno() for link in self._open_links())], _PUMP)
            with suppress(BlockingIOError):
                self._bell.recv(4096)
            last = self._closing.is_set()
            with self._lock:
                self._step()
                self._flush()
            if last:
                self._leave()
                self._bell.close()
                self._cord.close()
                return

    @abstractmethod
    def _open_links(self) -> list[Link]:
        """Return what may be received from; called by the thread alone."""

    @abstractmethod
    def _step(self) -> None:
        """Receive from every link; called with the lock held."""

    @abstractmethod
    def _flush(self) -> None:
        """Send the outbox; called with the lock held."""

    @abstractmethod
    def _leave(self) -> None:
        """Close every link."""


def send_quietly(link: Link, message: Message) -> None:
    """Send where the other side is still there; its loss shows when receiving."""
    with suppress(LinkLost):
        link.send(message)


def until(deadline: float) -> bool:
    """Wait a moment; False when the deadline has passed."""
    time.sleep(_LOOK)
    return time.monotonic() < deadline
