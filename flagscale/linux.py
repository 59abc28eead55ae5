"""Process facts and ties that the Linux kernel provides; other systems get an approximation or nothing."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Container
from contextlib import suppress
from functools import cache
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Loaded here because nothing may be loaded between fork and exec.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with(parent: int) -> None:
    """Have the kernel kill the calling process when its parent, with this pid, dies (prctl(2))."""
    if _LIBC is None:
        return
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before prctl took effect
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of every descendant that loses its own: even a daemon stays in the process tree."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)


_IS_LINUX = sys.platform == "linux"


def reap_adopted(own: Container[int]) -> None:
    """Reap adopted orphans that have ended, but leave the children in `own` to the code that started them."""
    if not _IS_LINUX:
        return
    look = os.WEXITED | os.WNOHANG | os.WNOWAIT
    with suppress(ChildProcessError):  # there are no children
        while (ended := os.waitid(os.P_ALL, 0, look)) and ended.si_pid not in own:
            os.waitpid(ended.si_pid, 0)


_TASKS = Path("/proc/self/task")


def may_have_descendants(besides: Container[int]) -> bool:
    """Return whether the caller, which adopts orphans and reaps them, may have any besides these children.

    The kernel's list of children is exact for the process that reaps them: nothing leaves it meanwhile
    (proc_pid_task(5)). True where the kernel offers none.
    """
    try:
        lists = [path.read_text(encoding="ascii") for path in _TASKS.glob("*/children")]
    except OSError:  # a thread has ended meanwhile
        return True
    return not lists or any(int(pid) not in besides for found in lists for pid in found.split())


def birth(pid: int) -> str:
    """Return when a process was born, so that a later process with its pid is not mistaken for it.

    That is the boot and the clock ticks since then: unlike a time of day, it does not change if the clock
    is corrected. Raises ProcessLookupError if there is no such process.
    """
    if _IS_LINUX:
        if not (fields := _stat(pid)):
            raise ProcessLookupError(f"no process {pid}")
        return f"{boot()}:{fields[19].decode()}"
    import psutil  # imported here, because a start on Linux does not need it

    try:
        return f"{boot()}:{psutil.Process(pid).create_time():.2f}"
    except psutil.NoSuchProcess:
        raise ProcessLookupError(f"no process {pid}") from None


def may_name(pid: int, *entries: str) -> bool:
    """Return whether a process may have each `NAME=value` in its environment; only Linux can say no."""
    if not _IS_LINUX:
        return True
    environment = _read(pid, "environ")
    return all(os.fsencode(entry) in environment for entry in entries)


def parent(pid: int) -> int:
    """Return the pid of a process's parent; 0 if the process no longer exists."""
    if _IS_LINUX:
        fields = _stat(pid)
        return int(fields[1]) if fields else 0
    import psutil  # imported here, because a start on Linux does not need it

    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).ppid()
    return 0


def oom_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory since this host booted."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


@cache
def boot() -> str:
    """Return an identifier that differs between boots of this host."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "boot"


def _read(pid: int, name: str) -> bytes:
    """Return a file of `/proc/PID`; b"" if the process no longer exists or belongs to another user."""
    try:
        with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


def _stat(pid: int) -> list[bytes]:
    """Return the fields of `/proc/PID/stat` after the program's name, which may hold any text; [] if missing.

    The first is the state, the second the parent's pid, the 20th the time of birth (proc(5)).
    """
    return _read(pid, "stat").rpartition(b")")[2].split()
