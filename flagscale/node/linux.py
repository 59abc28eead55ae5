"""What only the Linux kernel can promise; elsewhere each of these does as much as it can."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Container
from functools import cache
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Loaded here, because between fork and exec nothing may be loaded any more.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with(parent: int) -> None:
    """Have the kernel kill the calling process when its parent dies (between fork and exec; prctl(2))."""
    if _LIBC is None:
        return
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of every descendant that loses its own: no daemon trick takes one out of the tree."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def reap_adopted(own: Container[int]) -> None:
    """Take ended orphans out of the process table, but leave the children in `own` to who started them."""
    if _LIBC is None:
        return
    while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid not in own:
        os.waitpid(ended.si_pid, 0)


def birth(pid: int) -> str:
    """Return when a process was born, so that no other process with its pid can be taken for it.

    That is the boot and the clock ticks since then: unlike a time of day it does not change when the clock is
    corrected. Raises psutil.NoSuchProcess.
    """
    if _LIBC is None:
        return f"{boot()}:{psutil.Process(pid).create_time():.2f}"
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        raise psutil.NoSuchProcess(pid) from None
    # The second field is the program's name, which may hold anything; starttime is the 22nd (proc(5)).
    return f"{boot()}:{stat.rpartition(b')')[2].split()[19].decode()}"


@cache
def boot() -> str:
    """Return what tells one boot of this host from the next."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "boot"
