"""SSH connections as the user's own `ssh` makes them: `~/.ssh/config`, agent, keys, known hosts."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

import paramiko
from paramiko.ssh_exception import NoValidConnectionsError

from flagscale.remote.ssh_files import ConfigError, known_keys, settings_of

_KEEPALIVE = 15
_SYSTEM_KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"
_KNOWN_HOSTS = "~/.ssh/known_hosts ~/.ssh/known_hosts2"

# Its threads would print tracebacks of errors that are reported to the caller in one line.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


class Unreachable(Exception):
    """A host cannot be reached; the message says why."""


def connect(host: str, port: int | None, timeout: float, user: str | None = None) -> paramiko.SSHClient:
    """Return an open connection.

    Args:
        port, user: None: as in the user's SSH configuration.
        timeout: seconds for each of connecting, the server's banner, and the authentication.

    Raises:
        Unreachable: with the reason, and how to fix it if that is known.
    """
    settings = lookup(host)
    address = settings.get("hostname", host)
    number = port or int(settings.get("port", 22))
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    name = _name_of_key(address, number)
    # Of several keys of one type the first one counts: that of the user's own file.
    known = {key.get_name(): key for key in reversed([*known_keys(_known_hosts(settings), name)])}
    for kind, key in known.items():
        client.get_host_keys().add(name, kind, key)
    try:
        client.connect(
            address,
            port=number,
            username=user or settings.get("user"),
            key_filename=_identities(settings),  # type: ignore[arg-type]  # a list, says its documentation
            allow_agent=settings.get("identitiesonly", "no") != "yes",
            look_for_keys=settings.get("identitiesonly", "no") != "yes",
            timeout=timeout,
            banner_timeout=timeout,
            auth_timeout=timeout,
            sock=_way(settings, address, number, timeout),
        )
    except (paramiko.SSHException, OSError, EOFError) as error:
        client.close()
        raise Unreachable(_reason(error, address, number, timeout)) from None
    transport = client.get_transport()
    assert transport is not None
    transport.set_keepalive(_KEEPALIVE)
    _notice_loss(transport.sock, timeout)
    return client


def _notice_loss(way: object, seconds: float) -> None:
    """Make the connection end after this many silent seconds; the kernel would retry for minutes.

    A connection through another host ends with the one to that host.
    """
    if isinstance(way, socket.socket) and hasattr(socket, "TCP_USER_TIMEOUT"):
        way.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


def lookup(host: str) -> dict[str, Any]:
    """Return the settings of a host in the user's and the system's SSH configuration; keys in lower case."""
    try:
        return settings_of(host)
    except ConfigError as error:
        raise Unreachable(str(error)) from None


def _name_of_key(address: str, port: int) -> str:
    """Return the name of a server in `known_hosts`."""
    return address if port == 22 else f"[{address}]:{port}"


def _identities(settings: dict[str, Any]) -> list[str]:
    """Return the configured keys that exist; like `ssh`, ignore missing ones."""
    paths = (Path(name).expanduser() for name in settings.get("identityfile", []))
    return [str(path) for path in paths if path.is_file()]


def _known_hosts(settings: dict[str, Any]) -> list[Path]:
    user = settings.get("userknownhostsfile", _KNOWN_HOSTS)
    system = settings.get("globalknownhostsfile", _SYSTEM_KNOWN_HOSTS)
    return [Path(name).expanduser() for name in f"{user} {system}".split()]


def _way(settings: dict[str, Any], address: str, port: int, timeout: float) -> Any:
    """Return the socket to use if the host is behind another one (ProxyJump, ProxyCommand), else None."""
    if jumps := settings.get("proxyjump", "none"):
        *before, last = jumps.split(",")
        if last != "none":
            return _through(last, before, address, port, timeout)
    command = settings.get("proxycommand", "none")
    return None if command == "none" else paramiko.ProxyCommand(command)


def _through(jump: str, before: list[str], address: str, port: int, timeout: float) -> paramiko.Channel:
    """Return a channel from the jump host `[user@]host[:port]` to the address."""
    if before:
        raise Unreachable("ProxyJump over several hosts is not supported; give each host its own ProxyJump")
    user, _, place = jump.rpartition("@")
    name, _, number = place.partition(":")
    client = connect(name, int(number) if number else None, timeout, user or None)
    transport = client.get_transport()
    assert transport is not None
    channel = transport.open_channel("direct-tcpip", (address, port), ("127.0.0.1", 0), timeout=timeout)
    channel.jump = client  # type: ignore[attr-defined]  # lives as long as the channel
    return channel


def _reason(error: Exception, address: str, port: int, timeout: float) -> str:
    """Return in one line why the connection failed; `error` was raised by paramiko or the system."""
    name = _name_of_key(address, port)
    scan = f"ssh-keyscan -p {port} {address}"
    match error:
        case paramiko.BadHostKeyException():
            return (
                f"its host key has changed: someone may be intercepting the connection; if the host was "
                f"reinstalled, run `ssh-keygen -R '{name}'` and `{scan} >> ~/.ssh/known_hosts`"
            )
        case paramiko.PasswordRequiredException():
            return "the key has a passphrase; load it into an agent with ssh-add"
        case paramiko.AuthenticationException():
            return f"none of your keys is accepted ({error}); try `ssh -p {port} {address}`"
        case TimeoutError():
            return f"no answer from {address} port {port} within {timeout:g} s"
        case NoValidConnectionsError():
            first = next(iter(error.errors.values()))
            return f"{address} port {port}: {getattr(first, 'strerror', None) or first}"
        case socket.gaierror():
            return f"cannot resolve the host name {address}"
        # "No existing session": the same timeout, noticed by another of paramiko's threads.
        case paramiko.SSHException() if "protocol banner" in str(error) or "No existing" in str(error):
            return f"{address} port {port} accepts connections, but no SSH server answered in {timeout:g} s"
        case paramiko.SSHException() if "known_hosts" in str(error):
            return f"its host key is unknown; verify it, then add it: `{scan} >> ~/.ssh/known_hosts`"
    return f"{address} port {port}: {str(error) or 'it closed the connection'}"
