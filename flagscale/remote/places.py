"""Where the hosts of a job are on the network, and which of their names mean the same host."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from flagscale.node.network import own_address, resolved
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
    """Equal for two names of one host."""
    is_certain: bool = True
    """Whether the network says so; otherwise the SSH configuration leads there."""


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
    return "127.0.0.1" if not others else resolved(socket.gethostname())


def _remote_place(name: str, ssh_port: int | None) -> Place:
    try:
        known, port, way = configured_place(name, ssh_port)
    except Unreachable:  # reported when connecting to the host
        return Place(resolved(name), name)
    address = resolved(known)
    identity = f"{address} port {port}" + (f" through {way}" if way else "")
    if known.lower() != name.lower() or way:
        return Place(address, identity, is_certain=False)
    return Place(address, _HERE if is_local(address) and port == _SSH_PORT else identity)


def repeated(places: Mapping[Host, Place]) -> Iterator[tuple[Host, str, bool]]:
    """Yield each host that was named before in another way, what is wrong, and whether that is certain."""
    first: dict[str, Host] = {}
    for host, place in places.items():
        known = first.setdefault(place.identity, host)
        if known == host:
            continue
        is_certain = place.is_certain and places[known].is_certain
        what = f"it is the same host as {known.name} ({place.identity})"
        hint = "; remove one of them from the hostfile"
        if not is_certain:
            what, hint = f"{what} in ~/.ssh/config", "; correct it, or remove one of them from the hostfile"
        yield host, what + hint, is_certain
