"""Addresses, interfaces and ports of this host."""

from __future__ import annotations

import errno
import socket

import psutil

# Below the kernel's range of ports for outgoing connections, in which no port can be kept free.
_FREE_PORTS = range(20000, 32000, 7)


def own_address(other: str) -> str:
    """Return the address of this host on the route to another one. Raises OSError if there is no route."""
    family, kind, protocol, _, place = socket.getaddrinfo(other, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(place)  # sends nothing
        return str(probe.getsockname()[0])


def resolved(name: str) -> str:
    """Return the address that a name has on this host; the name itself if it has none."""
    try:
        return socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]  # type: ignore[return-value]
    except (OSError, UnicodeError):  # UnicodeError: `a..b`, for example
        return name


def interface_of(address: str) -> str | None:
    """Return the name of the interface that has an address; the loopback interface has all of 127/8."""
    for name, addresses in psutil.net_if_addrs().items():
        for known in addresses:
            if known.address == address or (address.startswith("127.") and known.address == "127.0.0.1"):
                return name
    return None


def listen(address: str, port: int) -> socket.socket:
    """Return a listening socket on this address only. Raises OSError if the port is in use."""
    return socket.create_server((address, port), family=_family(address), backlog=1024)


def free_port(address: str, preferred: int = 0, taken: tuple[int, ...] = ()) -> int:
    """Return the preferred port if it is free on this host, else another free one."""
    candidates = [preferred, *_FREE_PORTS] if preferred else list(_FREE_PORTS)
    for port in candidates:
        if port not in taken and is_free(address, port):
            return port
    raise OSError(errno.EADDRINUSE, "no port is free")


def is_free(address: str, port: int) -> bool:
    """Return whether a port is free to listen on. Raises OSError if the address is not this host's."""
    try:
        listen(address, port).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise
    return True


def _family(address: str) -> socket.AddressFamily:
    return socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][0]
