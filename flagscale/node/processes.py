"""Find every process of a run on this host, and end exactly those, never by name.

A process belongs to a run if its environment says so, if it is in the process group of the run's supervisor,
or if it descends from such a process. (The supervisor adopts orphans, so while it lives every process of the
run descends from it, even if that process changed its session or environment.)
"""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import psutil

from flagscale.linux import may_name, parent
from flagscale.run.env import HOST_RANK, RUN_ID, SERVICE, run_tags
from flagscale.run.state import HostState, ProcessId

_POLL = 0.1
_KILL_WAIT = 10.0


def find(pid: int) -> psutil.Process | None:
    """Return the living process with this pid; None if there is none, or if it is a zombie."""
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None
    return process if alive(process) else None


def living(identity: ProcessId | None) -> psutil.Process | None:
    """Return the living process; None if it has ended (or is a zombie, or its pid was reused)."""
    process = find(identity.pid) if identity else None
    with suppress(ProcessLookupError):
        return process if process and identity == ProcessId.of(process.pid) else None
    return None


def group_of(state: HostState) -> int | None:
    """Return the supervisor's process group while it lives; later, the number may be reused."""
    return state.supervisor.pid if state.supervisor and living(state.supervisor) else None


def of_run(run_id: str, rank: int | None = None, group: int | None = None) -> set[psutil.Process]:
    """Return the living processes of a run, without the caller and its ancestors.

    Args:
        rank: the host that they must belong to; default: any host.
        group: the process group of the run's supervisor, if it is certain that no other process has it now.
    """
    pids = psutil.pids()
    tags = run_tags(run_id, rank) if rank is not None else {RUN_ID: run_id}
    pending = [
        process
        for pid in pids
        # A host has thousands of processes, and psutil is slow for each: it examines only likely ones.
        if _is_likely(pid, tags, group) and (process := find(pid)) and _belongs(process, run_id, rank, group)
    ]
    found: set[psutil.Process] = set()
    children = _children(pids) if pending else {}
    while pending:
        process = pending.pop()
        if process not in found:
            found.add(process)
            # Checked again, because another process may have the pid by now.
            pending += [
                child
                for pid in children.get(process.pid, ())
                if (child := find(pid)) and parent(pid) == process.pid
            ]
    line = _own_line()
    return {process for process in found if process.pid not in line}


def _own_line() -> set[int]:
    """Return the pids of the caller and its ancestors, any of which may end meanwhile."""
    line, pid = set[int](), os.getpid()
    while pid and pid not in line:
        line.add(pid)
        pid = parent(pid)
    return line


def of_service(run_id: str, rank: int, name: str) -> set[psutil.Process]:
    """Return the living processes of one service of a run on this host."""

    def belongs(process: psutil.Process) -> bool:
        try:
            return process.environ().get(SERVICE) == name
        except psutil.Error:
            return False  # ended meanwhile

    return set(filter(belongs, of_run(run_id, rank)))


def listen_on(port: int, members: Iterable[psutil.Process]) -> bool:
    """Return whether one of the processes listens on a TCP port; True if the system does not tell."""
    for process in members:
        try:
            connections = process.net_connections("tcp")
        except psutil.NoSuchProcess:
            continue  # ended meanwhile
        except psutil.Error:
            return True
        if any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections):
            return True
    return False


def end(
    find: Callable[[], set[psutil.Process]], grace: float, may_miss: Callable[[], bool] = lambda: True
) -> list[psutil.Process]:
    """End all processes that `find` returns: TERM, `grace` seconds, then KILL until none is left.

    `find` is called again while waiting, so processes started meanwhile end too; what it found once is kept,
    because an orphan may no longer be recognisable. `may_miss` returns whether `find`, which has just found
    nothing, may have missed a process. Returns the processes that survived KILL.
    """

    def look() -> set[psutil.Process]:
        if (found := find()) or not may_miss():
            return found
        # Look once more: a process that executes another program has no environment for a moment.
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
    """Signal each process (psutil verifies that its pid was not reused); wake stopped processes for TERM."""
    for process in processes:
        try:
            process.send_signal(number)
            if number is signal.SIGTERM:
                process.send_signal(signal.SIGCONT)
        except psutil.Error:
            continue  # it has ended already, or is another user's and will be among those left


def wait_until_gone(process: psutil.Process, seconds: float) -> bool:
    """Wait for the end of a process; return whether it ended. A zombie counts as ended."""
    deadline = time.monotonic() + seconds
    while alive(process):
        if time.monotonic() >= deadline:
            return False
        with suppress(psutil.TimeoutExpired):  # it returns at the end, but not for every zombie
            process.wait(_POLL)
    return True


def alive(process: psutil.Process) -> bool:
    """Return whether exactly this process is still running."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_likely(pid: int, tags: Mapping[str, str], group: int | None) -> bool:
    try:
        if group is not None and os.getpgid(pid) == group:
            return True
        return may_name(pid, *(f"{name}={value}" for name, value in tags.items()))
    except ProcessLookupError:
        return False


def _belongs(process: psutil.Process, run_id: str, rank: int | None, group: int | None) -> bool:
    try:
        if group is not None and os.getpgid(process.pid) == group:
            return True
        environment = process.environ()
        return environment.get(RUN_ID) == run_id and (rank is None or environment.get(HOST_RANK) == str(rank))
    except (psutil.Error, OSError):
        return False  # ended meanwhile, or another user's: neither belongs to this run


def _children(pids: Iterable[int]) -> dict[int, list[int]]:
    """Return the pids of children by the pid of their parent."""
    children: dict[int, list[int]] = defaultdict(list)
    for pid in pids:
        children[parent(pid)].append(pid)
    return children
