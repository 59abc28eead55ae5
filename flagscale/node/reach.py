"""Whether the hosts of a job reach each other: each listens for a moment, all others connect."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

from flagscale.node.network import listen
from flagscale.node.state import Reply

_TIMEOUT = 3.0


def listen_for(address: str, ports: str, seconds: str) -> Reply:
    """Accept connections on ports of this address for a while.

    Args:
        ports: JSON: a list; 0 for one that is free.

    Reply: {"ports": those that are listened on}; {"ok": False} where one of them is taken.
    """
    with ExitStack() as opened:
        listeners = [opened.enter_context(listen(address, port)) for port in json.loads(ports)]
        opened.pop_all()
    deadline = time.monotonic() + float(seconds)
    for listener in listeners:
        threading.Thread(target=_accept, args=(listener, deadline), daemon=True).start()
    return {"ports": [listener.getsockname()[1] for listener in listeners]}


def _accept(listener: socket.socket, deadline: float) -> None:
    with listener, suppress(TimeoutError):
        while (left := deadline - time.monotonic()) > 0:
            listener.settimeout(left)
            listener.accept()[0].close()


def reach(places: str) -> Reply:
    """Connect to every `[address, port]` of a JSON list. Reply: {"reasons": why not, "" where it worked}."""

    def attempt(place: tuple[str, int]) -> str:
        try:
            socket.create_connection((place[0], place[1]), _TIMEOUT).close()
        except TimeoutError:
            return f"no answer within {_TIMEOUT:g} s"
        except OSError as error:
            return error.strerror or str(error)
        return ""

    with ThreadPoolExecutor(64) as pool:
        return {"reasons": list(pool.map(attempt, json.loads(places)))}
