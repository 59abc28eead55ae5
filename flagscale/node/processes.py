"""Find every process of a run on this host, and end them: exactly those, never by name.

A process belongs to a run if its environment says so, if it is in the process group of the run's supervisor,
or if it descends from such a process. (The supervisor adopts orphans, so while it lives every process of the
run descends from it, whatever that process did to its session and environment.)
"""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress

import psutil

from flagscale.linux import may_name, parent
from flagscale.run.env import HOST_RANK, RUN_ID
from flagscale.run.state import HostState, ProcessId

_POLL = 0.1
_KILL_WAIT = 10.0


def find(pid: int) -> psutil.Process | None:
    """Return the living process with this pid; None where there is none, or a zombie."""
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None
    return process if alive(process) else None


def living(identity: ProcessId | None) -> psutil.Process | None:
    """Return the living process; None if it is gone (or a zombie, or another one has its pid now)."""
    process = find(identity.pid) if identity else None
    with suppress(ProcessLookupError):
        return process if process and identity == ProcessId.of(process.pid) else None
    return None


def group_of(state: HostState) -> int | None:
    """Return the process group of the supervisor while that lives: only then it is surely not another's."""
    return state.supervisor.pid if state.supervisor and living(state.supervisor) else None


def of_run(run_id: str, rank: int | None = None, group: int | None = None) -> set[psutil.Process]:
    """Return the living processes of a run, without the caller and its ancestors.

    Args:
        rank: the host that they must belong to; default: any.
        group: the process group of the run's supervisor, if that is known not to be another's by now.
    """
    pids = psutil.pids()
    pending = [
        process
        for pid in pids
        # A host has thousands of processes, and psutil takes its time for each: it judges the likely ones.
        if _is_likely(pid, run_id, group)
        and (process := find(pid))
        and _belongs(process, run_id, rank, group)
    ]
    found: set[psutil.Process] = set()
    children = _children(pids) if pending else {}
    while pending:
        process = pending.pop()
        if process not in found:
            found.add(process)
            # Asked again, because the pid may be another's since.
            pending += [
                child
                for pid in children.get(process.pid, ())
                if (child := find(pid)) and parent(pid) == process.pid
            ]
    own = psutil.Process()
    return found - {own, *own.parents()}


def end(find: Callable[[], set[psutil.Process]], grace: float) -> list[psutil.Process]:
    """End all processes that `find` returns: TERM, `grace` seconds, then KILL until none is left.

    `find` is asked again while waiting, so processes born meanwhile end too; what it found once is kept,
    because an orphan may not be recognisable any more. Returns those that survived KILL.
    """

    def look() -> set[psutil.Process]:
        if found := find():
            return found
        # Once more: a process that becomes another program has no environment for a moment.
        time.sleep(_POLL)
        return find()

    left = look()
    send(left, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while left and time.monotonic() < deadline:
        time.sleep(_POLL)
        left = {process for process in left if alive(process)} | look()
    deadline = time.monotonic() + _KILL_WAIT
    while left and time.monotonic() < deadline:
        send(left, signal.SIGKILL)
        time.sleep(_POLL)
        left = {process for process in left if alive(process)} | look()
    return sorted(left, key=lambda process: process.pid)


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Signal each process (psutil verifies that its pid still means it) and wake stopped ones for TERM."""
    for process in processes:
        try:
            process.send_signal(number)
            if number is signal.SIGTERM:
                process.send_signal(signal.SIGCONT)
        except psutil.Error:
            continue  # it ended by itself, or is another user's: then it is among those left


def wait_until_gone(process: psutil.Process, seconds: float) -> bool:
    """Wait for the end of a process; a zombie has ended, whether or not its parent ever looks at it."""
    deadline = time.monotonic() + seconds
    while alive(process):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
    return True


def alive(process: psutil.Process) -> bool:
    """Whether this very process still runs."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_likely(pid: int, run_id: str, group: int | None) -> bool:
    try:
        return (group is not None and os.getpgid(pid) == group) or may_name(pid, f"{RUN_ID}={run_id}")
    except ProcessLookupError:
        return False


def _belongs(process: psutil.Process, run_id: str, rank: int | None, group: int | None) -> bool:
    try:
        if group is not None and os.getpgid(process.pid) == group:
            return True
        environment = process.environ()
        return environment.get(RUN_ID) == run_id and (rank is None or environment.get(HOST_RANK) == str(rank))
    except (psutil.Error, OSError):
        return False  # gone meanwhile, or another user's: neither can be of this run


def _children(pids: Iterable[int]) -> dict[int, list[int]]:
    """Return the pids by that of their parent."""
    children: dict[int, list[int]] = defaultdict(list)
    for pid in pids:
        children[parent(pid)].append(pid)
    return children
