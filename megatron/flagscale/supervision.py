"""The rank's side of supervision: signals, the end of its parent, heartbeats, stacks of a rank that hangs."""

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


def leave_requests_to_torchrun() -> None:
    """Ignore SIGINT and SIGHUP in a rank: torchrun passes on every request to end as SIGTERM.

    A signal to all processes at once would otherwise end the ranks before they have saved a checkpoint.
    """
    if "LOCAL_RANK" in os.environ:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)


def ignore_sigterm() -> None:
    """Ignore SIGTERM in a process that is about to end, or that another one waits for and then ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


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
