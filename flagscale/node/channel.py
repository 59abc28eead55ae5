"""An authenticated connection between two supervisors of a run: small JSON messages, a keepalive per second.

Both sides prove that they know the secret of the run, which is never sent (an HMAC challenge each way). Each
message is preceded by its length, four bytes in network order.
"""

from __future__ import annotations

import errno
import hmac
import json
import os
import select
import socket
import struct
import time
from typing import Any

SILENCE = 4.0
"""Seconds without a message or keepalive after which the other side counts as lost."""
GONE = "the connection to its supervisor was lost"
_ALIVE_EVERY = 1.0
_LARGEST = 1 << 16
_ALIVE = b"{}"
_LENGTH = struct.Struct("!I")
_NONCE = 32
_ROLES = (b"coordinator", b"member")
"""Part of a proof, so that the proof of one side cannot be sent back as that of the other."""

Message = dict[str, Any]


class LinkLost(Exception):
    """The connection to the other side is lost; the message says how this was noticed."""

    def __init__(self, how: str, is_closed: bool) -> None:
        super().__init__(how)
        self.is_closed = is_closed
        """Whether the connection was closed, as when the other process ends; otherwise it is only silent."""


class Link:
    """One side of a connection; used by one thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
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
                message = json.loads(_received(self._connection, _LARGEST))
                if message:
                    messages.append(message)
        except (OSError, EOFError, ValueError) as error:
            if messages:
                return messages  # the next call reports the loss
            raise _lost(error) from None
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
            _send(self._connection, data)
        except (OSError, ValueError) as error:
            raise _lost(error) from None


def _lost(error: Exception) -> LinkLost:
    """Return the loss of a connection, which a time limit or a missing route does not close."""
    return LinkLost(GONE, is_closed=isinstance(error, EOFError | ConnectionError))


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
    own, other = _ROLES if server else _ROLES[::-1]
    try:
        nonce = os.urandom(_NONCE)
        _send(channel, nonce)
        proof = _proof(secret, own, _received(channel, _NONCE))
        if not server:  # which proves nothing to a stranger
            _send(channel, proof)
        if hmac.compare_digest(_received(channel, _NONCE), _proof(secret, other, nonce)):
            if server:
                _send(channel, proof)
            return Link(channel)
    except (OSError, EOFError):
        pass
    channel.close()
    return None


def _proof(secret: bytes, role: bytes, nonce: bytes) -> bytes:
    return hmac.digest(secret, role + nonce, "sha256")


def _send(channel: socket.socket, data: bytes) -> None:
    channel.sendall(_LENGTH.pack(len(data)) + data)


def _received(channel: socket.socket, largest: int) -> bytes:
    """Return the next message. Raises OSError if it is larger than allowed, EOFError at the end."""
    (size,) = _LENGTH.unpack(_exactly(channel, _LENGTH.size))
    if size > largest:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    return _exactly(channel, size)


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (piece := channel.recv(size - len(data))):
            raise EOFError
        data += piece
    return data
