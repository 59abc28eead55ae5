"""Where the hosts of a job are on the network, and which of their names mean the same host."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from flagscale.node.network import own_address
from flagscale.remote.hosts import at_once
from flagscale.remote.pipe import Unreachable
from flagscale.remote.ssh import configured_place
from flagscale.run.machine import is_local
from flagscale.values import Host

_HERE = "this machine"
_SSH_PORT = 22


@dataclass(frozen=True)
class Place:
    """Where a host is: its address as seen by other hosts, and who it is, if that is certain."""

    address: str
    identity: str = ""
    """Equal for two names of one host; "" for a host that the SSH configuration leads to."""


def places_of(hosts: tuple[Host, ...], ssh_port: int | None) -> dict[Host, Place]:
    """Return the place of every host.

    Names are resolved here, where the user's SSH configuration knows them; the hosts resolve names that stay
    unknown. The address of this host is the one on its route to another host.
    """
    names = [host.name for host in hosts if not is_local(host.name)]
    # All at once: a name that no server answers for takes seconds.
    remote = dict(zip(names, at_once(lambda name: _remote_place(name, ssh_port), names), strict=True))
    own = Place(_own([place.address for place in remote.values()]), _HERE)
    return {host: remote.get(host.name, own) for host in hosts}


def _own(others: list[str]) -> str:
    """Return this host's address on the route to the first reachable one of the other hosts."""
    for other in others:
        with suppress(OSError):
            return own_address(other)
    return "127.0.0.1" if not others else _resolved(socket.gethostname())


def _remote_place(name: str, ssh_port: int | None) -> Place:
    known, port = name, ssh_port
    with suppress(Unreachable):  # reported when connecting to the host
        known, port = configured_place(name, ssh_port)
    address = _resolved(known)
    if known.lower() != name.lower() or port is None:
        return Place(address)
    return Place(address, _HERE if is_local(address) and port == _SSH_PORT else f"{address} port {port}")


def _resolved(name: str) -> str:
    try:
        return socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]  # type: ignore[return-value]
    except (OSError, UnicodeError):  # UnicodeError: `a..b`, for example
        return name


def repeated(places: Mapping[Host, Place]) -> Iterator[tuple[Host, str]]:
    """Yield every host that has been named before in another way, with what is wrong."""
    first: dict[str, Host] = {}
    for host, place in places.items():
        known = first.setdefault(place.identity or host.name, host)
        if known != host:
            is_where = f"it is the same host as {known.name} ({place.identity})"
            yield host, f"{is_where}; remove one of them from the hostfile"
