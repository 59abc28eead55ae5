"""Ties between processes that the Linux kernel keeps; elsewhere these functions do nothing."""

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
# Loaded here, because between fork and exec nothing may be loaded any more.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with(parent: int) -> None:
    """Have the kernel kill the calling process when its parent, whose pid this is, dies (prctl(2))."""
    if _LIBC is None:
        return
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of every descendant that loses its own: no daemon trick takes one out of the tree."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)


_IS_LINUX = sys.platform == "linux"


def reap_adopted(own: Container[int]) -> None:
    """Take ended orphans out of the process table, but leave the children in `own` to who started them."""
    if not _IS_LINUX:
        return
    look = os.WEXITED | os.WNOHANG | os.WNOWAIT
    with suppress(ChildProcessError):  # there is no child at all
        while (ended := os.waitid(os.P_ALL, 0, look)) and ended.si_pid not in own:
            os.waitpid(ended.si_pid, 0)


def birth(pid: int) -> str:
    """Return when a process was born, so that no other process with its pid can be taken for it.

    That is the boot and the clock ticks since then: unlike a time of day it does not change when the clock is
    corrected. Raises ProcessLookupError where there is no such process.
    """
    if _IS_LINUX:
        if not (fields := _stat(pid)):
            raise ProcessLookupError(f"no process {pid}")
        return f"{boot()}:{fields[19].decode()}"
    import psutil  # here, because a start on Linux does without it

    try:
        return f"{boot()}:{psutil.Process(pid).create_time():.2f}"
    except psutil.NoSuchProcess:
        raise ProcessLookupError(f"no process {pid}") from None


def may_name(pid: int, entry: str) -> bool:
    """Whether the environment of a process may hold an entry `NAME=value`: false only where it does not."""
    return not _IS_LINUX or os.fsencode(entry) in _read(pid, "environ")


def parent(pid: int) -> int:
    """Return the pid of a process's parent, 0 where either is gone."""
    if _IS_LINUX:
        fields = _stat(pid)
        return int(fields[1]) if fields else 0
    import psutil  # here, because a start on Linux does without it

    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).ppid()
    return 0


def oom_kills() -> int:
    """Return how many processes the kernel has killed for want of memory since this host was booted."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


@cache
def boot() -> str:
    """Return what tells one boot of this host from the next."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "boot"


def _read(pid: int, name: str) -> bytes:
    """Return what the kernel tells of a process; b"" where it is gone, or another user's."""
    try:
        with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


def _stat(pid: int) -> list[bytes]:
    """Return the fields of proc(5) behind the program's name, which may hold anything; [] where it is gone.

    The first is the state, the second the parent's pid, the 20th when it was born.
    """
    return _read(pid, "stat").rpartition(b")")[2].split()
