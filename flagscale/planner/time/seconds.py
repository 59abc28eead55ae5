"""Seconds of an operation on one rank, forward and backward."""

from __future__ import annotations

import math


class Seconds:
    """Of one direction: on the device, exposed communication, and the kernels that the host starts."""

    __slots__ = ("communication", "compute", "kernels")

    def __init__(self, compute: float = 0.0, communication: float = 0.0, kernels: float = 0.0) -> None:
        self.compute, self.communication, self.kernels = compute, communication, kernels

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(
            self.compute + other.compute,
            self.communication + other.communication,
            self.kernels + other.kernels,
        )

    def times(self, count: float) -> Seconds:
        return Seconds(self.compute * count, self.communication * count, self.kernels * count)

    def started(self) -> Seconds:
        """Return the seconds if a CUDA graph starts all kernels."""
        return Seconds(self.compute, self.communication)

    def overlapped(self) -> Seconds:
        """Return the seconds if communication runs beside the computation of another micro-batch."""
        return Seconds(self.compute, max(0.0, self.communication - self.compute), self.kernels)

    def total(self, launch_s: float) -> float:
        """Return the time that passes.

        Device and host work at the same time, but each waits for the other now and then. The root of the sum
        of squares is the longer one if they are unequal, and 1.4 times that if they are equal.
        """
        return math.hypot(self.compute + self.communication, self.kernels * launch_s)


class Operation:
    """One part of the work. `module` names what recomputation can choose."""

    __slots__ = ("backward", "forward", "module")

    def __init__(self, module: str, forward: Seconds, backward: Seconds) -> None:
        self.module, self.forward, self.backward = module, forward, backward
