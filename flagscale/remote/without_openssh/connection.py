"""Connections where OpenSSH is not installed: made by paramiko, as far as it does what `ssh` does."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import socket
import subprocess
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import paramiko
from paramiko.ssh_exception import NoValidConnectionsError

from flagscale.remote.pipe import Pipe, Unreachable
from flagscale.remote.transport import HostAccess
from flagscale.remote.without_openssh.known_hosts import known_keys
from flagscale.remote.without_openssh.ssh_config import HostSettings, settings_of
from flagscale.remote.without_openssh.ssh_jumps import Jump, read_jumps

_KEEPALIVE = 15
_PIECE = 1 << 16
_LAST_WORDS = 2.0
"""Seconds to wait for the remaining output of a program that has ended."""

# Its threads would print tracebacks of errors that are reported to the caller in one line.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


class ParamikoPipe:
    """A `Pipe` to a program that an open connection runs."""

    def __init__(self, client: paramiko.SSHClient, command: str, timeout: float) -> None:
        self._client = client
        self._stdin, self._stdout, self._stderr = client.exec_command(command, timeout=timeout)
        self._unsent, self._output = "", bytearray()

    def send(self, line: str) -> None:
        self._unsent += line

    def receive(self, seconds: float) -> str:
        channel, deadline = self._stdout.channel, time.monotonic() + seconds
        channel.settimeout(seconds)
        unsent, self._unsent = self._unsent, ""
        channel.sendall(unsent.encode())
        # Not `readline`, which waits for the end of an endless line, and decodes strictly.
        while not (end := self._output.find(b"\n") + 1):
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError
            channel.settimeout(left)
            if not (data := channel.recv(_PIECE)):
                raise EOFError("it ended")
            self._output += data
        line = self._output[:end].decode(errors="surrogateescape")
        del self._output[:end]
        return line

    def is_open(self) -> bool:
        return not (self._stdout.channel.closed or self._stdout.channel.exit_status_ready())

    def last_words(self) -> str:
        printed = b""
        self._stdout.channel.settimeout(_LAST_WORDS)
        with suppress(OSError):
            printed = self._stderr.read()
        return printed.decode(errors="replace")

    def close(self) -> None:
        self._client.close()


def connect(access: HostAccess, command: str) -> Pipe:
    """Log in to a host, and return the streams of a shell command there.

    Raises:
        Unreachable: with the reason, and how to fix it if that is known.
    """
    client = _log_in(Jump(access.host, access.ssh_port), access.connect_timeout)
    try:
        return ParamikoPipe(client, command, access.connect_timeout)
    except (paramiko.SSHException, OSError, EOFError) as error:
        client.close()
        raise Unreachable(f"cannot open a session: {str(error) or 'the connection was lost'}") from None


def _log_in(
    to: Jump, timeout: float, before: Sequence[Jump] | None = None, behind: tuple[Jump, ...] = ()
) -> paramiko.SSHClient:
    """Return an open connection.

    Args:
        timeout: seconds for each of connecting, the server's banner, and the authentication.
        before: the hosts on the way; None: those of the configuration.
        behind: the hosts that are to be reached through this one.
    """
    settings = settings_of(to.host, to.port, to.user)
    keys = _known_keys(settings)
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(_KnownKeys(keys))

    def transport(sock: Any, **named: Any) -> paramiko.Transport:
        made = paramiko.Transport(sock, **named)
        options, kinds = made.get_security_options(), {key.get_name() for key in keys}
        # Like `ssh`, ask for a key of a known type; the names of signatures with RSA keys differ.
        options.key_types = sorted(
            options.key_types, key=lambda name: ("ssh-rsa" if name.startswith("rsa-") else name) not in kinds
        )
        return made

    try:
        client.connect(
            settings.address,
            port=settings.port,
            username=settings.user,
            key_filename=[str(path) for path in settings.identities if os.path.isfile(path)],  # type: ignore[arg-type]
            allow_agent=not settings.only_identities,
            look_for_keys=False,
            timeout=timeout,
            banner_timeout=timeout,
            auth_timeout=timeout,
            sock=_way(settings, before, timeout, (*behind, to)),
            transport_factory=transport,
        )
    # ValueError: a damaged key, or a name that cannot be one of a host.
    except (paramiko.SSHException, OSError, EOFError, ValueError) as error:
        client.close()
        raise Unreachable(_reason(error, settings, timeout)) from None
    opened = client.get_transport()
    assert opened is not None
    opened.set_keepalive(_KEEPALIVE)
    _notice_loss(opened.sock, timeout)
    return client


def _notice_loss(way: object, seconds: float) -> None:
    """Make the connection end after this many silent seconds; the kernel would retry for minutes.

    A connection through another host ends with the one to that host.
    """
    is_known = hasattr(socket, "TCP_USER_TIMEOUT")  # on Linux
    if is_known and isinstance(way, socket.socket) and way.family != socket.AF_UNIX:
        way.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


class _KnownKeys(paramiko.MissingHostKeyPolicy):
    """Accepts any known key, as `ssh` does; paramiko itself would accept one of each type."""

    def __init__(self, keys: Sequence[paramiko.PKey]) -> None:
        self._keys = keys

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        if key in self._keys:
            return
        for known in self._keys:
            if known.get_name() == key.get_name():
                raise paramiko.BadHostKeyException(hostname, key, known)
        raise _UnknownKey(key)


class _UnknownKey(paramiko.SSHException):
    """The server's host key is in no file of known hosts."""

    def __init__(self, key: paramiko.PKey) -> None:
        super().__init__("unknown host key")
        self.key = key


def _known_keys(settings: HostSettings) -> list[paramiko.PKey]:
    found = known_keys(settings.known_hosts, _name_of_key(settings))
    # Like `ssh`, accept a key that was recorded without the port.
    return found or known_keys(settings.known_hosts, settings.alias or settings.address)


def _name_of_key(settings: HostSettings) -> str:
    """Return the name of a server in `known_hosts`."""
    of_address = settings.address if settings.port == 22 else f"[{settings.address}]:{settings.port}"
    return settings.alias or of_address


def _way(
    settings: HostSettings, before: Sequence[Jump] | None, timeout: float, behind: tuple[Jump, ...]
) -> socket.socket | paramiko.Channel | None:
    """Return the socket to use if the host is behind another one (ProxyJump, ProxyCommand), else None."""
    if jumps := before or read_jumps(settings.jumps):
        if jumps[-1] in behind:
            raise Unreachable(f"ProxyJump leads back to {jumps[-1].host}")
        client = _log_in(jumps[-1], timeout, jumps[:-1] or None, behind)
        opened = client.get_transport()
        assert opened is not None
        there = (settings.address, settings.port)
        channel = opened.open_channel("direct-tcpip", there, ("127.0.0.1", 0), timeout=timeout)
        channel.jump = client  # type: ignore[attr-defined]  # lives as long as the channel
        return channel
    return _connected(settings.command) if settings.command else None


def _connected(command: str) -> socket.socket:
    """Return a socket that is the stdin and stdout of a shell command."""
    ours, its = socket.socketpair()
    shell = os.environ.get("SHELL") or "/bin/sh"
    with its:
        process = subprocess.Popen(
            [shell, "-c", f"exec {command}"], stdin=its.fileno(), stdout=its.fileno(), start_new_session=True
        )
    weakref.finalize(ours, _end, process)
    return ours


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command with all that it has started, which may hold the connection."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)


def _reason(error: Exception, settings: HostSettings, timeout: float) -> str:
    """Return in one line why the connection failed; `error` was raised by paramiko or the system."""
    name, place = _name_of_key(settings), f"{settings.address} port {settings.port}"
    if settings.command:
        place = f"{place} (through ProxyCommand {settings.command})"
    match error:
        case paramiko.BadHostKeyException():
            return (
                "its host key has changed: someone may be intercepting the connection; if the host was "
                f"reinstalled, remove {name} from known_hosts, and then {_how_to_add(error.key, name)}"
            )
        case _UnknownKey():
            return (
                f"its host key is unknown; if it is {error.key.fingerprint}, {_how_to_add(error.key, name)}"
            )
        case paramiko.PasswordRequiredException():
            return "the key has a passphrase; load it into an agent with ssh-add"
        case paramiko.AuthenticationException():
            return f"none of your keys is accepted ({error})"
        case TimeoutError():
            return f"no answer from {place} within {timeout:g} s"
        case NoValidConnectionsError():
            first = next(iter(error.errors.values()))
            return f"{place}: {getattr(first, 'strerror', None) or first}"
        case socket.gaierror() | UnicodeError():
            return f"cannot resolve the host name {settings.address}"
        # "No existing session": the same timeout, noticed by another of paramiko's threads.
        case paramiko.SSHException() if "protocol banner" in str(error) or "No existing" in str(error):
            if settings.command:  # which may have ended at once
                return f"no SSH server answered from {place}"
            return f"{place} accepts connections, but no SSH server answered in {timeout:g} s"
    return f"{place}: {str(error) or 'it closed the connection'}"


def _how_to_add(key: paramiko.PKey, name: str) -> str:
    line = f"{name} {key.get_name()} {key.get_base64()}"
    return f"add it: `echo {shlex.quote(line)} >> ~/.ssh/known_hosts`"
