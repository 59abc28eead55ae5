"""The parts that played hosts act: how long each takes, and how it fails."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Fault = Literal[
    "refused", "silent", "login", "version", "shell", "ends", "start", "lost", "late start", "late loss"
]
"""How a host fails: it refuses connections, accepts them without a word, or refuses the key; it has another
version of FlagScale, its shell finds no Python, or its session ends at once; its start fails, or the
connection is lost when it is to start; the same two after the usual time of a start ("late").
"""
FAULTS: tuple[Fault, ...] = get_args(Fault)
REASONS: Mapping[Fault, str] = {
    "refused": "Connection refused",
    "silent": "no SSH server answered",
    "login": "none of your keys is accepted",
    "version": "FlagScale 0.0.1 is installed there",
    "shell": "python: No such file or directory",
    "ends": "FlagScale does not start there",
    "start": "ended with exit code 3: no such module",
    "late start": "ended with exit code 3: no such module",
    "lost": "the connection was lost",
    "late loss": "the connection was lost",
}
"""What the report of a failed start says about each fault."""
BEFORE_START, AT_START = FAULTS[:6], FAULTS[6:]
"""The faults that show before the host is asked to start anything, and those that show after that."""
_SLOW = 0.03
_TIMES_SLOWER = 5.0
_LONGEST = 8.0
"""Seconds; below the 10 s that a host has to answer."""


@dataclass(frozen=True)
class Part:
    """What one host does. Times are in seconds, without the time that the CPU needs."""

    address: str
    login: float = 0.0
    """From the offered key to its acceptance."""
    hello: float = 0.0
    """From the session's start to its first line, as for Python and its imports."""
    start: float = 0.0
    """From the request to start until the supervisor is ready for the others."""
    stop: float = 0.0
    """From the request to stop until nothing is left."""
    noise: bool = False
    """Whether the user's shell prints something before the session's first line."""
    fault: Fault | None = None


def addresses() -> Iterator[str]:
    """Yield addresses of the loopback interface, apart from those that other farms use (127.0.0.x)."""
    for third in range(1, 250):
        for last in range(1, 250):
            yield f"127.9.{third}.{last}"


def draw_parts(
    count: int, faults: int = 0, seed: int = 0, scale: float = 1.0, kinds: Sequence[Fault] = FAULTS
) -> list[Part]:
    """Return the parts of `count` hosts, of which `faults` fail, in these ways equally often.

    Times are log-normal, and a few hosts are five times as slow; `scale` multiplies all of them. Every 50th
    host's shell prints a line. The first host has no fault.
    """
    rng = random.Random(seed)

    def seconds(median: float) -> float:
        return scale * min(median * rng.lognormvariate(0.0, 0.5) * slower, _LONGEST)

    failing = rng.sample(range(1, count), faults)
    fault_of = {rank: kinds[place % len(kinds)] for place, rank in enumerate(failing)}
    parts = []
    for rank, address in zip(range(count), addresses(), strict=False):
        slower = _TIMES_SLOWER if rng.random() < _SLOW else 1.0
        times = {"login": 0.05, "hello": 0.3, "start": 0.6, "stop": 0.3}
        drawn = {name: seconds(median) for name, median in times.items()}
        parts.append(Part(address, **drawn, noise=rank % 50 == 7, fault=fault_of.get(rank)))
    return parts
