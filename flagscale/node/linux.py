"""What only the Linux kernel can promise."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill the calling process when its parent dies (between fork and exec; prctl(2)).

    A no-op elsewhere: there the guard alone ends what is left.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
