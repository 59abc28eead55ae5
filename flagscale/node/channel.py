"""An authenticated connection between two supervisors of a run: small JSON messages, a keepalive per second.

Both sides prove that they know the secret of the run, which is never sent (an HMAC challenge each way, by
`multiprocessing.connection`); nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import time
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

SILENCE = 4.0
"""Seconds without a message or keepalive after which the other side counts as lost."""
GONE = "the connection to its supervisor was lost"
_ALIVE_EVERY = 1.0
_LARGEST = 1 << 16
_ALIVE = b"{}"

Message = dict[str, Any]


class LinkLost(Exception):
    """The connection to the other side is lost; the message says how this was noticed."""

    def __init__(self, how: str, is_closed: bool) -> None:
        super().__init__(how)
        self.is_closed = is_closed
        """Whether the connection was closed, as when the other process ends; otherwise it is only silent."""


class Link:
    """One side of a connection; used by one thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # The connection's own `poll` would create such an object each time.
        self._poll = select.poll()
        self._poll.register(connection.fileno(), select.POLLIN)
        self._looked = self._heard = self._spoke = time.monotonic()

    def send(self, message: Message) -> None:
        self._write(json.dumps(message).encode())

    def receive(self) -> list[Message]:
        """Return the messages received since the last call, and send a keepalive if it is time.

        Raises:
            LinkLost: the other side closed the connection, or was silent for too long.
        """
        messages: list[Message] = []
        now = time.monotonic()
        # If this side was paused, perhaps with its whole machine, it could not hear anything meanwhile.
        self._heard += max(0.0, now - self._looked - _ALIVE_EVERY)
        self._looked = now
        try:
            while self._poll.poll(0):
                self._heard = time.monotonic()
                message = json.loads(self._connection.recv_bytes(_LARGEST))
                if message:
                    messages.append(message)
        except (OSError, EOFError, ValueError):
            if messages:
                return messages  # the next call reports the loss
            raise LinkLost(GONE, is_closed=True) from None
        if time.monotonic() - self._heard > SILENCE:
            raise LinkLost(f"nothing was heard from it for {SILENCE:g} s", is_closed=False)
        # Received messages are passed on first: a lost connection would hide them.
        if not messages and time.monotonic() - self._spoke > _ALIVE_EVERY:
            self._write(_ALIVE)
        return messages

    def fileno(self) -> int:
        return self._connection.fileno()

    def close(self) -> None:
        self._connection.close()

    def hold_until_exit(self) -> None:
        """Have the kernel close the connection when this process ends, and nothing else before that."""
        os.dup(self.fileno())

    def _write(self, data: bytes) -> None:
        self._spoke = time.monotonic()
        try:
            self._connection.send_bytes(data)
        except (OSError, ValueError):
            raise LinkLost(GONE, is_closed=True) from None


def accept(channel: socket.socket, secret: bytes) -> Link | None:
    """Return a link over an accepted connection; None, and close it, if the other side lacks the secret."""
    return _proved(channel, secret, server=True)


def dial(address: str, port: int, secret: bytes, timeout: float) -> Link | None:
    """Connect to a listening supervisor; return None if that is not possible now."""
    try:
        channel = socket.create_connection((address, port), timeout)
    except OSError:
        return None
    return _proved(channel, secret, server=False)


def _proved(channel: socket.socket, secret: bytes, *, server: bool) -> Link | None:
    channel.settimeout(None)
    channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for direction in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        # Neither a silent unknown peer nor a full buffer may block this side.
        channel.setsockopt(socket.SOL_SOCKET, direction, struct.pack("ll", int(SILENCE), 0))
    connection = Connection(channel.detach())
    steps = (deliver_challenge, answer_challenge) if server else (answer_challenge, deliver_challenge)
    try:
        for step in steps:
            step(connection, secret)
    except (AuthenticationError, OSError, EOFError):
        connection.close()
        return None
    return Link(connection)
