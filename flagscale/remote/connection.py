"""An SSH connection as the user's own `ssh` would make it: `~/.ssh/config`, agent, keys, known hosts."""

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

# Its threads would print tracebacks of what is told to the caller in one line.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


class Unreachable(Exception):
    """Why a host cannot be reached, in words for the user."""


def connect(host: str, port: int | None, timeout: float, user: str | None = None) -> paramiko.SSHClient:
    """Return an open connection.

    Args:
        port, user: None for what the user's SSH configuration says.
        timeout: seconds for each of connecting, the other side's greeting, and the authentication.

    Raises:
        Unreachable: with the reason, and what to do about it where that is known.
    """
    settings = lookup(host)
    address = settings.get("hostname", host)
    number = port or int(settings.get("port", 22))
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    name = _name_of_key(address, number)
    # Of several keys of one kind the first counts: that of the user's own file.
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
    """Let the connection end where the other side is silent for so long; the kernel would try for minutes.

    A connection through another host ends with the one to that host.
    """
    if isinstance(way, socket.socket) and hasattr(socket, "TCP_USER_TIMEOUT"):
        way.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


def lookup(host: str) -> dict[str, Any]:
    """Return what the user's and the system's SSH configuration say of a host; keys in lower case."""
    try:
        return settings_of(host)
    except ConfigError as error:
        raise Unreachable(str(error)) from None


def _name_of_key(address: str, port: int) -> str:
    """Return what the known hosts call a server."""
    return address if port == 22 else f"[{address}]:{port}"


def _identities(settings: dict[str, Any]) -> list[str]:
    """The named keys that exist, as `ssh` does; a missing one is not a mistake."""
    paths = (Path(name).expanduser() for name in settings.get("identityfile", []))
    return [str(path) for path in paths if path.is_file()]


def _known_hosts(settings: dict[str, Any]) -> list[Path]:
    user = settings.get("userknownhostsfile", _KNOWN_HOSTS)
    system = settings.get("globalknownhostsfile", _SYSTEM_KNOWN_HOSTS)
    return [Path(name).expanduser() for name in f"{user} {system}".split()]


def _way(settings: dict[str, Any], address: str, port: int, timeout: float) -> Any:
    """The socket to speak through where the host is behind another one (ProxyJump, ProxyCommand)."""
    if jumps := settings.get("proxyjump", "none"):
        *before, last = jumps.split(",")
        if last != "none":
            return _through(last, before, address, port, timeout)
    command = settings.get("proxycommand", "none")
    return None if command == "none" else paramiko.ProxyCommand(command)


def _through(jump: str, before: list[str], address: str, port: int, timeout: float) -> paramiko.Channel:
    """A channel from the jump host `[user@]host[:port]` to the address."""
    if before:
        raise Unreachable("a ProxyJump over several hosts is not known here; give each its own ProxyJump")
    user, _, place = jump.rpartition("@")
    name, _, number = place.partition(":")
    client = connect(name, int(number) if number else None, timeout, user or None)
    transport = client.get_transport()
    assert transport is not None
    channel = transport.open_channel("direct-tcpip", (address, port), ("127.0.0.1", 0), timeout=timeout)
    channel.jump = client  # type: ignore[attr-defined]  # lives as long as the channel
    return channel


def _reason(error: Exception, address: str, port: int, timeout: float) -> str:
    """Say in one line why the connection failed; `error` is what paramiko or the system raised."""
    name = _name_of_key(address, port)
    scan = f"ssh-keyscan -p {port} {address}"
    match error:
        case paramiko.BadHostKeyException():
            return (
                f"its host key has changed (someone may be in between; or it was installed anew: then run "
                f"`ssh-keygen -R '{name}'` and `{scan} >> ~/.ssh/known_hosts`)"
            )
        case paramiko.PasswordRequiredException():
            return "the key has a passphrase; load it into an agent with ssh-add"
        case paramiko.AuthenticationException():
            return f"no key of yours is accepted ({error}); try `ssh -p {port} {address}`"
        case TimeoutError():
            return f"no answer from {address} port {port} within {timeout:g} s"
        case NoValidConnectionsError():
            first = next(iter(error.errors.values()))
            return f"{address} port {port}: {getattr(first, 'strerror', None) or first}"
        case socket.gaierror():
            return f"no address is known for the name {address}"
        # "No existing session": the same timeout, noticed by the other one of paramiko's threads.
        case paramiko.SSHException() if "protocol banner" in str(error) or "No existing" in str(error):
            return f"{address} port {port} accepts connections, but no SSH server greets within {timeout:g} s"
        case paramiko.SSHException() if "known_hosts" in str(error):
            return f"its host key is not known; compare it and add it: `{scan} >> ~/.ssh/known_hosts`"
    return f"{address} port {port}: {str(error) or 'it closed the connection'}"
