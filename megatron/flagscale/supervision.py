"""The rank's side of supervision: ending with its parent, heartbeats, and stacks of a rank that hangs."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from contextlib import suppress

from flagscale.linux import die_with
from flagscale.run.env import HEARTBEAT_FILE

_HEARTBEAT_EVERY = 1.0
_last_heartbeat = 0.0


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies; no effect if it does not support that."""
    die_with(os.getppid())


def write_stacks_when_asked() -> None:
    """Write the stacks of all threads to stderr on SIGUSR1, which the supervisor sends to ranks that hang."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)


def heartbeat() -> None:
    """Show the supervisor that this host's ranks make progress: touch the file it watches, once per second.

    The first rank of a host does it for all of them, because a rank that hangs soon stops the others.
    """
    global _last_heartbeat
    now = time.monotonic()
    if (
        now - _last_heartbeat < _HEARTBEAT_EVERY
        or os.environ.get("LOCAL_RANK") != "0"
        or HEARTBEAT_FILE not in os.environ
    ):
        return
    _last_heartbeat = now
    with suppress(OSError), open(os.environ[HEARTBEAT_FILE], "a"):  # a full disk must not end a job
        os.utime(os.environ[HEARTBEAT_FILE])
