"""What a host itself says before a job is trusted to it."""

from __future__ import annotations

import os
import shutil
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flagscale import __version__, platforms
from flagscale.node.state import Reply


def probe(directory: str, platform: str, distribution: str, port: str) -> Reply:
    """Return what a preflight compares: versions, devices, disk for `directory`, whether `port` is free."""
    try:
        engine = version(distribution)
    except PackageNotFoundError:
        engine = ""
    existing = next(path for path in (Path(directory), *Path(directory).parents) if path.is_dir())
    return {
        "flagscale": __version__,
        "engine": engine,
        "devices": platforms.find(platform).count_devices(os.environ),
        "disk_free": shutil.disk_usage(existing).free,
        "writable": os.access(existing, os.W_OK),
        "port_free": not int(port) or _is_free(int(port)),
    }


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError:
            return False
        return True
