"""Free ports for tests that run beside other tests, which look for free ports as well."""

from __future__ import annotations

import itertools
import random
import socket

_PORTS = range(20000, 32000)  # below the ports that the kernel gives to clients and to servers on port 0
# Each process begins at a place of its own, so that two of them do not find the same port before it is used.
_NEXT = itertools.cycle(_PORTS)
for _ in range(random.SystemRandom().randrange(len(_PORTS))):
    next(_NEXT)


def free_port(address: str = "") -> int:
    """Return a port that is free on an address (default: on all), another one at each call.

    Raises RuntimeError if there is none.
    """
    for port in itertools.islice(_NEXT, len(_PORTS)):
        with socket.socket() as trial:
            try:
                trial.bind((address, port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port was found")
