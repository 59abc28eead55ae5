"""Addresses, interfaces and ports of this host."""

from __future__ import annotations

import errno
import fcntl
import socket
from contextlib import suppress

# Below the kernel's range of ports for outgoing connections, in which no port can be kept free.
_FREE_PORTS = range(20000, 32000, 7)
_SIOCGIFADDR, _REQUEST, _ADDRESS = 0x8915, 40, slice(20, 24)
"""An ioctl of Linux, the size of its `ifreq`, and where that holds an IPv4 address."""


def own_address(other: str) -> str:
    """Return the address of this host on the route to another one. Raises OSError if there is no route."""
    family, kind, protocol, _, place = socket.getaddrinfo(other, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(place)  # sends nothing
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str | None:
    """Return the name of the interface that has an address; the loopback interface has all of 127/8."""
    if name := _interface_by_first_address("127.0.0.1" if address.startswith("127.") else address):
        return name
    import psutil  # here, because a start seldom needs it

    for name, addresses in psutil.net_if_addrs().items():
        for known in addresses:
            if known.address == address or (address.startswith("127.") and known.address == "127.0.0.1"):
                return name
    return None


def _interface_by_first_address(address: str) -> str | None:
    """Return the name of the interface whose first IPv4 address this is; see netdevice(7) of Linux."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no IPv4 address
                known = fcntl.ioctl(asking, _SIOCGIFADDR, name.encode().ljust(_REQUEST, b"\0"))
                if socket.inet_ntoa(known[_ADDRESS]) == address:
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
