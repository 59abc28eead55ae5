"""The agent of this host: start it for an attempt, end it, and find where its ranks are stuck."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import psutil

from flagscale.linux import die_with
from flagscale.node import processes
from flagscale.node.network import interface_of, own_address
from flagscale.node.rendezvous import AttemptStart
from flagscale.values import Channel, NodeCommand

_NOTHING_TO_SAVE = 10.0
"""The longest grace, in seconds, of an agent that has not started any ranks yet."""
SERVICES_EXIT = 5.0
"""Seconds that services have to exit when their requests are finished or cut."""
_LAST_WORDS = 2.0
"""Seconds that the agent of services has to record how they ended."""
_STACKS = 1.0
"""Seconds that ranks have to write their stacks."""


def start_agent(
    node: NodeCommand, begin: AttemptStart, channel: Channel | None, secrets: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start the agent of this host; it dies with the calling thread. Raises OSError if it cannot start."""
    Path(node.failure_file).unlink(missing_ok=True)
    return subprocess.Popen(
        node.command(begin.hosts),
        env={**os.environ, **_network(channel), **node.env, **secrets},
        cwd=node.cwd,
        stdin=subprocess.DEVNULL,
        preexec_fn=partial(die_with, os.getpid()),
    )


def time_to_end(node: NodeCommand) -> float:
    """Return the seconds that the agent may take to end after SIGTERM: servers finish requests first."""
    return node.stop_grace + (SERVICES_EXIT + _LAST_WORDS if node.services else 0.0)


def end_agent(agent: subprocess.Popen[bytes], grace: float) -> None:
    """Signal the agent to end, which it passes on to its ranks, and give them time to save their state."""
    if agent.poll() is not None:
        return
    process = psutil.Process(agent.pid)
    # Looking for children takes some milliseconds.
    if grace > _NOTHING_TO_SAVE and not process.children():
        grace = _NOTHING_TO_SAVE
    processes.send([process], signal.SIGTERM)
    try:
        agent.wait(grace)
    except subprocess.TimeoutExpired:
        pass  # the caller ends what is left


def write_stacks(agent: subprocess.Popen[bytes]) -> None:
    """Make every rank write the stacks of its threads to its log (see `megatron.flagscale.supervision`)."""
    for rank in ranks(agent):
        print(f"flagscale: stacks of the rank with pid {rank.pid} ({rank.status()})", flush=True)
        processes.send([rank], signal.SIGUSR1)
    time.sleep(_STACKS)


def ranks(agent: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the living ranks: the children of the agent to which torchrun gave a local rank."""
    found = []
    try:
        for child in psutil.Process(agent.pid).children():
            if processes.alive(child) and "LOCAL_RANK" in child.environ():
                found.append(child)
    except psutil.Error:
        pass  # the process is ending
    return found


def _network(channel: Channel | None) -> dict[str, str]:
    """Make gloo use the interface that leads to the first host instead of the one of the host's name."""
    if channel is None or "GLOO_SOCKET_IFNAME" in os.environ:
        return {}
    name = interface_of(own_address(channel.address))
    return {"GLOO_SOCKET_IFNAME": name} if name else {}


_FIRST_HEARTBEAT = 600.0
"""Seconds, in addition to the limit, that the ranks have to load and compile before the first heartbeat."""


class Heartbeat:
    """Watches the file that a rank touches whenever it makes progress, from the start of an attempt.

    Time is measured by this host's clock, from the moment at which the change of the file is noticed: the
    file's own time is the file server's, and either clock may be adjusted.
    """

    def __init__(self, heartbeat: Path, limit: float | None) -> None:
        self._heartbeat, self._limit = heartbeat, limit
        self._seen = self._touched()
        self._since = time.monotonic()
        self._patience = (limit or 0.0) + _FIRST_HEARTBEAT

    def is_overdue(self) -> bool:
        """Return whether the ranks made no progress for longer than the limit; False without a limit."""
        if self._limit is None:
            return False
        if (touched := self._touched()) != self._seen:
            self._seen, self._since, self._patience = touched, time.monotonic(), self._limit
        return time.monotonic() - self._since > self._patience

    def _touched(self) -> int:
        try:
            return self._heartbeat.stat().st_mtime_ns
        except FileNotFoundError:
            return 0
