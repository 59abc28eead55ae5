"""Probe this host before a job is started on it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flagscale import __version__, platforms
from flagscale.checks.data import input_violations
from flagscale.node.data import scan
from flagscale.node.network import free_port, is_free, listen
from flagscale.node.tokenizers import odd_tokenizers
from flagscale.run.state import Reply


def probe(question: str) -> Reply:
    """Return the facts about this host that a preflight compares.

    Args:
        question: JSON: "directory" (of the run), "platform", "distributions" (of the engine), "packages"
            (others that the job needs, `a|b`: one of them), "inputs" (of the job) and "cwd" for their paths,
            "listens" ((address, port) of every server to start), "mark" (a file that all hosts should see, or
            ""), "is_check" (for more checks than a start needs); for the first host also "address" and the
            preferred "ports".

    Reply: versions, missing packages, clock, devices, disk, problems with the inputs; for the first host
    "ports" (the preferred ones if they are free, else others) and "taken" (the preferred ones in use).
    """
    asked = json.loads(question)
    directory = Path(asked["directory"])
    existing = next(path for path in (directory, *directory.parents) if os.path.isdir(path))
    inputs, cwd = asked["inputs"], Path(asked["cwd"])
    platform = platforms.find(asked["platform"])
    return {
        "flagscale": __version__,
        "engine": _version(asked["distributions"]),
        "missing": [name for name in asked["packages"] if not _version(name.split("|"))],
        "time": time.time(),
        "devices": platform.count_devices(os.environ),
        "busy": platform.count_users(),
        "disk_free": shutil.disk_usage(existing).free,
        "writable": os.access(existing, os.W_OK),
        "directory": str(existing),
        "sees_mark": not asked["mark"] or os.path.exists(asked["mark"]),
        "wrong_inputs": [what for _, what in input_violations(inputs, cwd)] or scan(inputs, cwd),
        "odd_tokenizers": odd_tokenizers(inputs, cwd) if asked["is_check"] else [],
        "taken_ports": [port for address, port in asked["listens"] if not _can_listen(address, port)],
        **(_ports(asked) if asked["address"] else {}),
    }


def _version(distributions: Sequence[str]) -> str:
    """Return the version of the first of these that is installed; "" if none is."""
    for name in distributions:
        with suppress(PackageNotFoundError):
            return version(name).partition("+")[0]  # a local build is the same version
    return ""


def _can_listen(address: str, port: int) -> bool:
    try:
        return is_free(address, port)
    except OSError:
        return True  # not this host's address: the server will report that


def _ports(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return free ports of the first host; {"no_address": reason} if its address is not this host's."""
    try:
        taken = [port for port in asked["ports"] if not is_free(asked["address"], port)]
        ports: list[int] = []
        for preferred in asked["ports"]:
            ports.append(free_port(asked["address"], preferred, tuple(ports)))
    except OSError as error:
        return {"no_address": f"{asked['address']}: {error.strerror}"}
    return {"ports": ports, "taken": taken}


_TIMEOUT = 3.0


def listen_for(address: str, ports: str, seconds: str) -> Reply:
    """Accept connections on ports of this address for a while.

    Args:
        ports: a JSON list; 0 stands for any free port.

    Reply: {"ports": the ports that are listened on}. Raises OSError if a port is in use.
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


def dial(places: str) -> Reply:
    """Connect to every `[address, port]` of a JSON list. Reply: {"reasons": of failure, "" if it worked}."""

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
