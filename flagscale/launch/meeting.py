"""Where the hosts of a job meet: an address of the first host that the others can reach."""

from __future__ import annotations

import socket
from contextlib import suppress

from flagscale.cluster.hosts import is_local
from flagscale.job import Host
from flagscale.launch.fanout import in_order
from flagscale.node.network import own_address


def addresses_of(hosts: tuple[Host, ...]) -> dict[Host, str]:
    """Return the address of every host, as the hosts see each other.

    Names are looked up here, where the user's SSH configuration knows them; a name that stays unknown is left
    to the hosts. This host is told by its own address on the way to another one.
    """
    names = [host.name for host in hosts if not is_local(host.name)]
    # At once: where the names have to be asked for, one that nobody answers takes seconds.
    remote = dict(zip(names, in_order(_address, names), strict=True))
    return {host: remote.get(host.name) or _own([*remote.values()]) for host in hosts}


def _own(others: list[str]) -> str:
    """Return this host's address on the way to the first one that there is a way to."""
    for other in others:
        with suppress(OSError):
            return own_address(other)
    return "127.0.0.1" if not others else _address(socket.gethostname())


def _address(name: str) -> str:
    # Not above: paramiko takes 0.3 s, and a job of one host does without.
    from flagscale.launch.connection import ConnectionFailure, lookup

    known = name
    with suppress(ConnectionFailure):  # told when the host is connected to
        known = str(lookup(name).get("hostname", name))
    try:
        return socket.getaddrinfo(known, None, type=socket.SOCK_STREAM)[0][4][0]  # type: ignore[return-value]
    except OSError:
        return known
