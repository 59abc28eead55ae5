"""The protocol by which the supervisors of a run's hosts begin and end each attempt together.

A star: the supervisor of the first host listens (`Coordinator`), the others connect to it (`Member`). Each
attempt of the job begins when every host is ready; when one host's part fails, is stopped, or is no longer
heard from, this is reported to all others, and they end theirs. If the first host is stopped, the others also
confirm to it that nothing of the run is left on them.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, Protocol

from flagscale.frozen import asdict, dataclass, replace
from flagscale.node.channel import Link, LinkLost, Message

_PUMP = 0.5
"""Seconds at most between two checks of the links; this side must send a keepalive every second."""
_REST = 2e-5
"""Seconds per link to pause before all are checked: of 1 000 links, one sends something at any moment."""
_LOOK = 0.1
_LONGEST = 8000
"""Characters of a verdict that are sent; the exception of a rank may name thousands of tensors."""
COMING_BACK = 10.0
"""Seconds after which a supervisor that closed its connection and did not reconnect counts as ended."""


@dataclass(frozen=True)
class AttemptStart:
    """The start of an attempt; `hosts` are the ranks of the hosts that take part, in order; empty: all."""

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
    """Whether another attempt would end in the same way."""
    is_rollback: bool = False
    """Whether the ranks ended to start again from a checkpoint."""

    def to_message(self) -> Message:
        text = self.text if len(self.text) <= _LONGEST else f"{self.text[: _LONGEST - 4]} ..."
        return {"verdict": asdict(replace(self, text=text))}


class Peers(Protocol):
    """The other hosts of the run, as a supervisor sees them."""

    def rendezvous(self, attempt: int, seconds: float, stopped: Callable[[], bool]) -> AttemptStart | Verdict:
        """Wait until all hosts are ready for an attempt; a `Verdict` says why it cannot begin."""
        ...

    def verdict(self) -> Verdict | None:
        """Return the verdict that ends the current attempt on all hosts; None while there is none."""
        ...

    def report(self, verdict: Verdict) -> None:
        """Report to all other hosts how this host's part ended."""
        ...

    def wait(self, seconds: float) -> None:
        """Wait for at most this time, but not longer than until there is a verdict."""
        ...

    def confirm_end(self, deadline: float) -> tuple[int, ...]:
        """Confirm that nothing of the run is left on this host but this process, which then exits.

        Returns the hosts that have confirmed the same to this one and whose supervisors have exited since. It
        waits for them, but not beyond the deadline (`time.monotonic`).
        """
        ...

    def close(self) -> None:
        """Send the remaining messages and disconnect."""
        ...


class Alone:
    """The peers of a job on one host: there are no other hosts to wait for."""

    def rendezvous(self, attempt: int, seconds: float, stopped: Callable[[], bool]) -> AttemptStart | Verdict:
        return AttemptStart(attempt, ())

    def verdict(self) -> Verdict | None:
        return None

    def report(self, verdict: Verdict) -> None:
        pass

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def confirm_end(self, deadline: float) -> tuple[int, ...]:
        return ()

    def close(self) -> None:
        pass


class ChannelEnd(ABC):
    """The part that both ends of the channel share: a thread that owns the links, and the current verdict."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        """Notified when there is a verdict, and when the last link is lost."""
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

    def wait(self, seconds: float) -> None:
        with self._changed:
            if self._verdict is None:
                self._changed.wait(seconds)

    def close(self) -> None:
        self._closing.set()
        self._ring()
        self._thread.join()

    def _begin(self, attempt: int) -> bool:
        """Discard the verdict of the last attempt (lock held); keep a stop, and return False then."""
        self._attempt = attempt
        if self._is_stopped():
            return False
        self._verdict = None
        return True

    def _take(self, verdict: Verdict) -> bool:
        """Keep the first verdict of this attempt, and a stop at any time; return False if nothing changes."""
        if verdict.kind == "stopped":
            is_new = not self._is_stopped()
        else:
            is_new = self._verdict is None and verdict.attempt == self._attempt
        if is_new:
            self._verdict = verdict
            self._changed.notify_all()
        return is_new

    def _is_stopped(self) -> bool:
        return self._verdict is not None and self._verdict.kind == "stopped"

    def _ring(self) -> None:
        """Make the thread check its links immediately."""
        with suppress(OSError):  # it is already being woken, or has ended
            self._cord.send(b"!")

    def _pump(self) -> None:
        while True:
            poll = select.poll()
            links = self._open_links()
            for number in (self._bell.fileno(), *(link.fileno() for link in links)):
                poll.register(number, select.POLLIN)
            poll.poll(1000 * _PUMP)
            time.sleep(_REST * len(links))
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
        """Return the links to receive from; called only by the thread."""

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
    """Send a message and ignore a lost connection, which is noticed when receiving."""
    with suppress(LinkLost):
        link.send(message)


def until(deadline: float) -> bool:
    """Wait a moment; return False if the deadline has passed."""
    time.sleep(_LOOK)
    return time.monotonic() < deadline
