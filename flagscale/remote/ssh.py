"""Remote hosts: one SSH connection per host, with one or more sessions of `python -m flagscale.node serve`.

Nothing that a user wrote becomes shell text: the command line holds only two quoted paths; everything else is
sent as JSON on the session's standard input.
"""

from __future__ import annotations

import json
import shlex
import threading
from contextlib import suppress

import paramiko

from flagscale import __version__
from flagscale.node.commands import HELLO
from flagscale.remote.connection import Unreachable, connect
from flagscale.remote.transport import HostAccess
from flagscale.run.state import Reply

_NOISE = 100
"""Lines that a user's shell may print before the first line of the session."""
_LAST_LINES = 20
_HANDSHAKES = threading.BoundedSemaphore(64)
"""The number of simultaneous handshakes: each has a time limit, and all share one Python interpreter."""
_LAST_WORDS = 2.0
"""Seconds to wait for the remaining output of a session that has ended."""


class SshTransport:
    """Performs verbs on a remote host. The next command after a lost connection opens a new one."""

    def __init__(self, access: HostAccess) -> None:
        self._access = access
        self._lock = threading.Lock()
        self._client: paramiko.SSHClient | None = None
        self._idle: list[Session] = []

    def call(self, words: list[str], seconds: float) -> Reply:
        try:
            session = self._session()
            reply = session.ask(words, seconds)
        except Unreachable as failure:
            return {"ok": False, "message": str(failure), "unreachable": True}
        with self._lock:
            self._idle.append(session)
        return reply

    def _session(self) -> Session:
        """Return an idle session, or open another one: a stop must not wait for a start."""
        with self._lock:
            while self._idle:
                session = self._idle.pop()
                if session.is_open():
                    return session
            try:
                return Session(self._connected(), self._access)
            except Unreachable:
                if self._client is None or _is_active(self._client):
                    raise
            # Sessions end a moment before the loss of their connection is noticed, so open a new connection.
            return Session(self._connected(), self._access)

    def _connected(self) -> paramiko.SSHClient:
        if self._client is None or not _is_active(self._client):
            self._client = None
            with _HANDSHAKES:
                self._client = connect(self._access.host, self._access.ssh_port, self._access.connect_timeout)
        return self._client


class Session:
    """One remote process that performs verbs, one after another."""

    def __init__(self, client: paramiko.SSHClient, access: HostAccess) -> None:
        self._timeout = access.connect_timeout
        words = ["env", f"PYTHONPATH={access.source_root}", access.python, "-m", "flagscale.node", "serve"]
        try:
            self._stdin, self._stdout, self._stderr = client.exec_command(
                shlex.join(words), timeout=access.connect_timeout
            )
        except (paramiko.SSHException, OSError, EOFError) as error:
            why = str(error) or "the connection was lost"
            raise Unreachable(f"cannot open a session: {why}") from None
        self._greet()

    def is_open(self) -> bool:
        return not (self._stdout.channel.closed or self._stdout.channel.exit_status_ready())

    def ask(self, words: list[str], seconds: float) -> Reply:
        """Return the reply to a command."""
        self._stdout.channel.settimeout(seconds)
        try:
            # Some file names are not valid UTF-8; JSON escapes those as well.
            self._stdin.write(json.dumps(words) + "\n")
            self._stdin.flush()
            reply: Reply = json.loads(self._line())
        except TimeoutError:
            self._stdout.channel.close()
            raise Unreachable(f"no answer within {seconds:g} s") from None
        except (OSError, EOFError, ValueError) as error:
            raise Unreachable(self._ended(f"the connection was lost ({error})")) from None
        return reply

    def _greet(self) -> None:
        """Wait for the first line. Raises Unreachable, with the output of shell or Python, if none comes."""
        try:
            for _ in range(_NOISE):
                with suppress(ValueError):
                    reported = json.loads(self._line())
                    if isinstance(reported, dict) and HELLO in reported:
                        break
            else:
                raise EOFError
        except TimeoutError:
            raise Unreachable(f"connected, but it did not answer within {self._timeout:g} s") from None
        except (OSError, EOFError):
            raise Unreachable(self._ended("FlagScale does not start there")) from None
        if reported[HELLO] != __version__:
            self._stdout.channel.close()
            raise Unreachable(f"FlagScale {reported[HELLO]} is installed there, but {__version__} here")

    def _line(self) -> str:
        line = self._stdout.readline()
        if not line.endswith("\n"):
            raise EOFError("it ended")
        return str(line)

    def _ended(self, what: str) -> str:
        """Return `what`, followed by the last output of its shell or Python."""
        printed = ""
        self._stdout.channel.settimeout(_LAST_WORDS)
        with suppress(OSError):
            printed = self._stderr.read().decode(errors="replace").strip()
        self._stdout.channel.close()
        return ": ".join(filter(None, (what, "\n".join(printed.splitlines()[-_LAST_LINES:]))))


def _is_active(client: paramiko.SSHClient) -> bool:
    transport = client.get_transport()
    return transport is not None and transport.is_active()
