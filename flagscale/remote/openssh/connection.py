"""Connections made by the user's own `ssh`, a child process, so that they are what `ssh` makes of them."""

from __future__ import annotations

import math
import os
import random
import re
import select
import signal
import subprocess
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress

from flagscale.remote.openssh import client as openssh
from flagscale.remote.openssh.errors import is_crowded, messages, reason
from flagscale.remote.pipe import HANDSHAKES, Pipe, Unreachable
from flagscale.remote.transport import HostAccess

_FAILED = 255
"""The exit code of `ssh` itself; any other one is that of the remote command."""
_LAST_WORDS = 2.0
"""Seconds to wait for the remaining output of a program that has ended."""
_BUSY = 3.0
"""Seconds after which a handshake waits for its host, rather than for a core of this machine."""
_KEPT = 1 << 16
_AUTHENTICATED = re.compile(rb"^Authenticated to ", re.MULTILINE)
_PAUSES = (0.5, 1.5, 3.0)
"""Seconds before further attempts: a server with many logins at once drops some of them (`MaxStartups`)."""
_OPTIONS = {
    "BatchMode": "yes",
    "LogLevel": "VERBOSE",  # says when we are logged in, and why not, whatever the user's level is
    "ControlMaster": "no",  # an existing connection is used, but none outlives us
    "RemoteCommand": "none",
    "ClearAllForwardings": "yes",
    "ForwardX11": "no",  # would end with the connection, long before the job
    "Tunnel": "no",
    "ServerAliveCountMax": "3",
}
_OPTIONS_SINCE_8_7 = {"SessionType": "default", "ForkAfterAuthentication": "no", "StdinNull": "no"}


def connect(access: HostAccess, command: str) -> Pipe:
    """Start `ssh HOST COMMAND`, and return its streams once it has logged in.

    Raises:
        Unreachable: with the reason, and how to fix it if that is known.
    """
    pauses = iter(_PAUSES)
    while True:
        with HANDSHAKES:
            child = _start([*_command_line(access), command])
            child.wait(child.has_begun, _BUSY)
        # It has limits of its own: one for each address of the host, and for each host on the way.
        limit = 3 * access.connect_timeout
        if not child.wait(child.has_begun, limit):
            child.close()
            raise Unreachable(f"no answer from {access.host} within {limit:g} s")
        if not child.has_failed():
            child.close.atexit = False  # the end of our process closes the streams, and with them the session
            return child
        printed = child.last_words()
        pause = next(pauses, None)
        if pause is None or not is_crowded(printed):
            break
        time.sleep(pause * random.uniform(0.5, 1.5))
    raise Unreachable(
        reason(printed, openssh.destination(access.host, access.ssh_port, access.connect_timeout))
    )


def _command_line(access: HostAccess) -> list[str]:
    """Return the command line up to the host. What it leaves open is up to the user's configuration."""
    program = openssh.program() or "ssh"
    options = {
        **_OPTIONS,
        **(_OPTIONS_SINCE_8_7 if openssh.version(program) >= (8, 7) else {}),
        "ConnectTimeout": str(max(1, math.ceil(access.connect_timeout))),
        "ServerAliveInterval": str(max(1, math.ceil(access.connect_timeout / 3))),
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    files = openssh.config_files_of(access.host, access.ssh_port)
    return [program, *files, "-T", *words, *openssh.place(access.host, access.ssh_port)]


def _start(words: Sequence[str]) -> OpenSsh:
    try:
        return OpenSsh(words)
    except OSError as error:
        raise openssh.cannot_start(words[0], error) from None


class OpenSsh:
    """A `Pipe` to the program that a child process `ssh` runs on its host."""

    def __init__(self, words: Sequence[str]) -> None:
        # In a session of its own: Ctrl-C is for us, and no password can be asked for on the terminal.
        self._process = subprocess.Popen(
            words,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "SSH_ASKPASS_REQUIRE": "never"},  # nor in a window, by a jump host's `ssh`
            start_new_session=True,
        )
        self._unsent, self._output, self._errors = bytearray(), bytearray(), bytearray()
        streams = [
            stream for stream in (self._process.stdin, self._process.stdout, self._process.stderr) if stream
        ]
        for stream in streams:
            os.set_blocking(stream.fileno(), False)
        self._input, out, err = (stream.fileno() for stream in streams)
        self._readable = {out: self._output, err: self._errors}
        self._stdout, self._stderr = out, err
        self.close = weakref.finalize(self, _end, self._process)

    def send(self, line: str) -> None:
        self._unsent += line.encode()

    def receive(self, seconds: float) -> str:
        if not self.wait(lambda: b"\n" in self._output or self._has_ended(), seconds):
            raise TimeoutError
        end = self._output.find(b"\n") + 1
        if not end:
            raise ConnectionError("it ended") if self.has_failed() else EOFError("it ended")
        line = self._output[:end].decode(errors="surrogateescape")
        del self._output[:end]
        return line

    def is_open(self) -> bool:
        return self._process.poll() is None

    def last_words(self) -> str:
        self.wait(lambda: self._stderr not in self._readable, _LAST_WORDS)
        return messages(self._errors.decode(errors="replace"))

    def has_begun(self) -> bool:
        """Return whether the login has succeeded or failed."""
        return bool(self._output or _AUTHENTICATED.search(self._errors)) or self._has_ended()

    def has_failed(self) -> bool:
        """Return whether the connection has failed or was lost."""
        if not self._has_ended():
            return False
        try:
            code = self._process.wait(_LAST_WORDS)
        except subprocess.TimeoutExpired:  # the program left others behind that keep the connection open
            return False
        return code == _FAILED or code < 0  # or killed by a signal

    def _has_ended(self) -> bool:
        return self._stdout not in self._readable

    def wait(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Write what is to be sent and read what arrives, until `holds`; return False if it takes longer."""
        deadline = time.monotonic() + seconds
        while not holds():
            left = deadline - time.monotonic()
            poll = select.poll()
            for stream in self._readable:
                poll.register(stream, select.POLLIN)
            if self._unsent:
                poll.register(self._input, select.POLLOUT)
            for stream, _ in poll.poll(math.ceil(1000 * max(0.0, left))):
                self._transfer(stream)
            if left <= 0:  # what has arrived counts: this thread may have waited for a core of a busy machine
                return holds()
        return True

    def _transfer(self, stream: int) -> None:
        with suppress(BlockingIOError):
            if stream == self._input:
                try:
                    del self._unsent[: os.write(stream, self._unsent)]
                except BrokenPipeError:
                    self._unsent.clear()  # the end of the output says the rest
            elif data := os.read(stream, _KEPT):
                self._readable[stream] += data
                del self._errors[:-_KEPT]
            else:
                del self._readable[stream]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close the streams and end `ssh`, with what it has started."""
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LAST_WORDS)
