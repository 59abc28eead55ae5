"""Remote hosts: sessions of `python -m flagscale.node serve`, one after another or at the same time.

Nothing that a user wrote becomes shell text: the command line holds only two quoted paths; everything else is
sent as JSON on the session's standard input.
"""

from __future__ import annotations

import json
import shlex
import threading
from contextlib import suppress

from flagscale import __version__
from flagscale.node.commands import HELLO
from flagscale.remote.openssh import client as openssh
from flagscale.remote.openssh import connection as with_openssh
from flagscale.remote.pipe import Pipe, Unreachable
from flagscale.remote.transport import HostAccess
from flagscale.run.state import Reply

_NOISE = 100
"""Lines that a user's shell may print before the first line of the session."""
_LAST_LINES = 20
_HANDSHAKES = threading.BoundedSemaphore(64)
"""The number of simultaneous handshakes: each has a time limit, and all share the cores of this machine."""


class SshTransport:
    """Performs verbs on a remote host. The next command after a lost connection opens a new one."""

    def __init__(self, access: HostAccess) -> None:
        self._access = access
        self._lock = threading.Lock()
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
        return Session(self._access)


class Session:
    """One remote process that performs verbs, one after another."""

    def __init__(self, access: HostAccess) -> None:
        self._timeout = access.connect_timeout
        words = ["env", f"PYTHONPATH={access.source_root}", access.python, "-m", "flagscale.node", "serve"]
        self._pipe = connect(access, shlex.join(words))
        self._greet()

    def is_open(self) -> bool:
        return self._pipe.is_open()

    def ask(self, words: list[str], seconds: float) -> Reply:
        """Return the reply to a command."""
        try:
            # Some file names are not valid UTF-8; JSON escapes those as well.
            self._pipe.send(json.dumps(words) + "\n")
            reply: Reply = json.loads(self._pipe.receive(seconds))
        except TimeoutError:
            self._pipe.close()
            raise Unreachable(f"no answer within {seconds:g} s") from None
        except (OSError, EOFError, ValueError) as error:
            raise Unreachable(self._ended(f"the connection was lost ({error})")) from None
        return reply

    def _greet(self) -> None:
        """Wait for the first line. Raises Unreachable, with the output of shell or Python, if none comes."""
        try:
            for _ in range(_NOISE):
                with suppress(ValueError):
                    reported = json.loads(self._pipe.receive(self._timeout))
                    if isinstance(reported, dict) and HELLO in reported:
                        break
            else:
                raise EOFError
        except TimeoutError:
            self._pipe.close()
            raise Unreachable(f"connected, but it did not answer within {self._timeout:g} s") from None
        except ConnectionError:
            raise Unreachable(self._ended("the connection was lost")) from None
        except EOFError:
            raise Unreachable(self._ended("FlagScale does not start there")) from None
        if reported[HELLO] != __version__:
            self._pipe.close()
            raise Unreachable(f"FlagScale {reported[HELLO]} is installed there, but {__version__} here")

    def _ended(self, what: str) -> str:
        """Return `what`, followed by the last output of its shell or Python."""
        printed = self._pipe.last_words().strip()
        self._pipe.close()
        return ": ".join(filter(None, (what, "\n".join(printed.splitlines()[-_LAST_LINES:]))))


def connect(access: HostAccess, command: str) -> Pipe:
    """Log in to a host, and return the streams of a shell command there.

    The user's own `ssh` does it; where that is not installed, paramiko does.

    Raises:
        Unreachable: with the reason, and how to fix it if that is known.
    """
    with _HANDSHAKES:
        if openssh.program():
            return with_openssh.connect(access, command)
        # Not at the top: importing paramiko takes 0.3 s.
        from flagscale.remote.without_openssh import connection as without_openssh

        return without_openssh.connect(access, command)


def configured_place(host: str, port: int | None = None) -> tuple[str, int]:
    """Return the address (or name) and the port that the user's SSH configuration gives for a host.

    Raises:
        Unreachable: the configuration cannot be read; the message says why.
    """
    if openssh.program():
        with _HANDSHAKES:
            found = openssh.settings(host, port)
        return found.first("hostname"), int(found.first("port"))
    from flagscale.remote.without_openssh.ssh_config import settings_of

    settings = settings_of(host, port)
    return settings.address, settings.port
