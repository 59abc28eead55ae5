"""Remote hosts: sessions of `python -m flagscale.node serve`, one after another or at the same time.

A session that starts a host becomes its supervisor, so that a start takes one Python per host. Nothing that a
user wrote becomes shell text: the command line holds only two quoted paths and the run's id; everything else
is sent as JSON on the session's standard input.
"""

from __future__ import annotations

import json
import re
import shlex
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace

from flagscale import __version__
from flagscale.node.commands import HELLO
from flagscale.remote.openssh import client as openssh
from flagscale.remote.openssh import connection as with_openssh
from flagscale.remote.pipe import HANDSHAKES, Ended, Pipe, Unreachable, handshakes_wait
from flagscale.remote.transport import HostAccess
from flagscale.run.env import run_tags
from flagscale.run.state import Reply

_LAST_LINES = 20
_EXIT = 2.0
"""Seconds that a supervisor may take to exit after it has answered that it was stopped."""


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
            if isinstance(failure, Ended) and self._access.supervises:
                return self._ask_again(words, seconds, str(failure))
            return {"ok": False, "message": str(failure), "unreachable": True}
        if self._access.supervises and words[0] == "start":
            if reply.get("stopped"):
                reply["ended"] = session.ends(_EXIT)
            session.close()  # it is the supervisor now
            return reply
        with self._lock:
            self._idle.append(session)
        return reply

    def _ask_again(self, words: list[str], seconds: float, failure: str) -> Reply:
        """Ask a plain session, after one that is a process of the run was killed: by a stop, for example."""
        if words[0] == "start":
            words = ["outcome", *words[1:], failure]
        reply = SshTransport(replace(self._access, supervises=None)).call(words, seconds)
        return {**reply, "message": failure} if reply.get("unreachable") else reply

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
        self._pipe = connect(access, _session_command(access))
        self._greet()

    def is_open(self) -> bool:
        return self._pipe.is_open()

    def close(self) -> None:
        self._pipe.close()

    def ask(self, words: list[str], seconds: float) -> Reply:
        """Return the reply to a command."""
        try:
            # Some file names are not valid UTF-8; JSON escapes those as well.
            self._pipe.send(json.dumps(words) + "\n")
            reply: Reply = json.loads(self._pipe.receive(seconds))
        except TimeoutError:
            self._pipe.close()
            raise Unreachable(f"no answer within {seconds:g} s") from None
        except EOFError as error:
            raise Ended(self._ended(f"the connection was lost ({error})")) from None
        except (OSError, ValueError) as error:
            raise Unreachable(self._ended(f"the connection was lost ({error})")) from None
        return reply

    def ends(self, seconds: float) -> bool:
        """Return whether the process ends within this time: the kernel then closes its output."""
        try:
            self._pipe.receive(seconds)
        except EOFError:
            return True
        except (TimeoutError, OSError):
            pass
        return False

    def _greet(self) -> None:
        """Wait for the first line, whatever the user's shell prints before it.

        Raises:
            Unreachable: none comes in time; the message quotes the last output of shell or Python.
        """
        deadline = time.monotonic() + self._timeout
        noise: deque[str] = deque(maxlen=_LAST_LINES)
        try:
            while True:
                if handshakes_wait():  # nothing is lost by waiting for this host as well
                    deadline = time.monotonic() + self._timeout
                left = deadline - time.monotonic()
                if left < -self._timeout:
                    raise TimeoutError  # although there is something to read
                try:
                    # What has arrived by now counts, even if this machine was too busy to read it in time.
                    line = self._pipe.receive(max(0.0, left))
                except TimeoutError:
                    if handshakes_wait():
                        continue
                    raise
                noise.append(line)
                with suppress(ValueError):
                    reported = json.loads(line)
                    if isinstance(reported, dict) and HELLO in reported:
                        break
        except TimeoutError:
            self._pipe.close()
            what = f"connected, but it did not answer within {self._timeout:g} s"
            raise Unreachable(_quoting(what, "".join(noise))) from None
        except ConnectionError:
            raise Unreachable(self._ended("the connection was lost")) from None
        except EOFError:
            raise Ended(self._ended("FlagScale does not start there", "".join(noise))) from None
        if reported[HELLO] != __version__:
            self._pipe.close()
            raise Unreachable(f"FlagScale {reported[HELLO]} is installed there, but {__version__} here")

    def _ended(self, what: str, printed: str = "") -> str:
        """Return `what`, followed by the last output of its shell or Python."""
        errors = self._pipe.last_words()
        self._pipe.close()
        return _quoting(what, errors if errors.strip() else printed)


def _session_command(access: HostAccess) -> str:
    """Return the shell command of a session.

    If the session is to become a supervisor, the kernel records it as a process of the run from its first
    moment: `run_tags` are in its environment. It runs in the background, so that the SSH session can end
    before it does, and `cat` keeps that session open until it closes its output.
    """
    environment, verb = {"PYTHONPATH": access.source_root}, ["serve"]
    if access.supervises:
        run_id, rank = access.supervises
        environment, verb = environment | run_tags(run_id, rank), ["supervise", "-", str(rank), run_id]
    variables = [f"{name}={value}" for name, value in environment.items()]
    command = shlex.join(["env", *variables, access.python, "-m", "flagscale.node", *verb])
    if not access.supervises:
        return command
    # A program in the background has no input unless it is given one.
    return shlex.join(["sh", "-c", f"exec 3<&0; {{ {command} <&3 3<&- & }} | exec cat 3<&-"])


def _quoting(what: str, printed: str) -> str:
    """Return `what`, followed by the last lines that were printed."""
    return ": ".join(filter(None, (what, "\n".join(printed.strip().splitlines()[-_LAST_LINES:]))))


def connect(access: HostAccess, command: str) -> Pipe:
    """Log in to a host, and return the streams of a shell command there.

    The user's own `ssh` does it; where that is not installed, paramiko does.

    Raises:
        Unreachable: with the reason, and how to fix it if that is known.
    """
    if openssh.program():
        return with_openssh.connect(access, command)
    with HANDSHAKES:
        # Not at the top: importing paramiko takes 0.3 s.
        from flagscale.remote.without_openssh import connection as without_openssh

        return without_openssh.connect(access, command)


def configured_place(host: str, port: int | None = None) -> tuple[str, int, str]:
    """Return the address (or name), the port and the way to a host, as the user's SSH configuration says.

    The way is "" for a direct connection.

    Raises:
        Unreachable: the configuration cannot be read; the message says why.
    """
    if openssh.program():
        with HANDSHAKES:
            found = openssh.settings(host, port)
        way = found.first("proxyjump") or found.first("proxycommand")
        # A command with the name in it leads elsewhere for another name.
        way = re.sub("%[nkC]", lambda _: host, way)
        return found.first("hostname"), int(found.first("port")), way
    from flagscale.remote.without_openssh.ssh_config import settings_of

    settings = settings_of(host, port)
    return settings.address, settings.port, settings.jumps or settings.command
