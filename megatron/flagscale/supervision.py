"""The rank's side of supervision: signals, the end of its parent, heartbeats, stacks of a rank that hangs."""

from __future__ import annotations

import faulthandler
import functools
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import resource_tracker
from typing import Any

from flagscale.linux import die_with
from flagscale.run.env import HEARTBEAT_FILE
from megatron.flagscale.patching import Patch

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


def _without_sigterm(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def get_write_results_queue(mp_mode: str = "spawn") -> Any:
        # It starts this process itself, and unblocks SIGTERM then.
        resource_tracker.ensure_running()
        # A rank's other threads still receive the signal; the process that is started inherits the mask.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            return original(mp_mode)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    return get_write_results_queue


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


PATCHES = (
    Patch(
        "megatron.core.dist_checkpointing.strategies.filesystem_async:get_write_results_queue",
        _without_sigterm,
        "It starts a process without which the rank cannot save, and which a signal to all processes ends.",
        "worker",
        until="the process ignores SIGTERM from its start",
    ),
)
