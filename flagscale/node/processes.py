"""Find every process of a run on this host, and end them: exactly those, never by name.

A process belongs to a run if it carries the run's id in its environment, descends from one that does, or is in
the process group of the run's supervisor.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable

import psutil

from flagscale.node.state import ProcessId

RUN_ID = "FLAGSCALE_RUN_ID"
_POLL = 0.1
_KILL_WAIT = 10.0


def of_run(run_id: str, group: ProcessId | None = None) -> set[psutil.Process]:
    """Return the living processes of a run, without the caller and its ancestors.

    Args:
        group: the supervisor, leader of the process group that the run was started in.
    """
    found: set[psutil.Process] = set()
    leader_alive = group is not None and group.process() is not None
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get(RUN_ID) == run_id or (leader_alive and os.getpgid(process.pid) == group.pid):  # type: ignore[union-attr]
                found.add(process)
        except (psutil.Error, OSError):
            continue  # gone meanwhile, or another user's: neither can be of this run
    for process in list(found):
        try:
            found.update(child for child in process.children(recursive=True) if _alive(child))
        except psutil.Error:
            continue
    return found - _own_line()


def end(find: Callable[[], set[psutil.Process]], grace: float) -> list[psutil.Process]:
    """End all processes that `find` returns: TERM, `grace` seconds, then KILL until none is left.

    `find` is asked again while waiting, so processes born meanwhile end too. Returns those that survived KILL
    (stuck in the kernel).
    """
    send(find(), signal.SIGTERM)
    if _wait_until_none(find, grace):
        return []
    deadline = time.monotonic() + _KILL_WAIT
    while (left := find()) and time.monotonic() < deadline:
        send(left, signal.SIGKILL)
        time.sleep(_POLL)
    return sorted(left, key=lambda process: process.pid)


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Signal each process (psutil verifies that its pid still means the same process); wake stopped ones for TERM."""
    for process in processes:
        try:
            process.send_signal(number)
            if number is signal.SIGTERM:
                process.send_signal(signal.SIGCONT)
        except psutil.Error:
            continue  # it ended by itself


def _wait_until_none(find: Callable[[], set[psutil.Process]], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while find():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
    return True


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _own_line() -> set[psutil.Process]:
    own = psutil.Process()
    return {own, *own.parents()}
