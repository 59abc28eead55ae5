"""Seconds of a call that all ranks make at the same time: the median of some rounds, agreed by all ranks."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from megatron.flagscale.chips import HOST_BACKEND, chip

_MOST_CALLS = 2000


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int
    round_s: float
    """The seconds of a round at least: short calls are repeated."""
    call_s: float
    """The seconds of a call at most: sizes that would take longer are left out."""
    part_s: float
    """The seconds of a part, after which the sizes that are left are left out: on a slow or busy machine."""


QUICK = Effort(rounds=5, round_s=0.002, call_s=0.01, part_s=2.5)
THOROUGH = Effort(rounds=5, round_s=0.005, call_s=0.05, part_s=10.0)


class UnsupportedError(Exception):
    """The chip or its backend does not have an operation; all ranks find that."""


class Clock:
    """Times calls on this rank together with the others. Every rank has to make the same calls in order."""

    def __init__(self, effort: Effort) -> None:
        self.effort = effort
        self.ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        # Ranks agree through host memory, so that it does not disturb what is measured.
        self._end = math.inf
        self._group = torch.distributed.new_group(backend=HOST_BACKEND) if self.ranks > 1 else None

    def begin_part(self) -> None:
        """Begin to count the seconds of a part."""
        self._end = time.perf_counter() + self.effort.part_s

    def seconds(
        self,
        prepare: Callable[[], Callable[[], object]],
        of_ranks: Callable[[Sequence[float]], float] = statistics.median,
    ) -> float:
        """Return the seconds of one call of what `prepare` returns; inf if a rank has too little memory.

        It is the same figure on every rank: `of_ranks` chooses among theirs. Raises UnsupportedError.
        """
        try:
            call = prepare()
            call()  # once without a clock: kernels are loaded or compiled
            own = 0.0
        except torch.OutOfMemoryError:
            own = math.inf
        except (RuntimeError, NotImplementedError) as error:
            raise UnsupportedError(str(error).strip().partition("\n")[0]) from error
        if max(self._shared(own)) == math.inf:
            return math.inf
        once = max(self._shared(self._round(call, 1)))
        if once < self.effort.round_s:  # short, or delayed
            once = max(self._shared(min(self._round(call, 1) for _ in range(2))))
        calls = min(max(math.ceil(self.effort.round_s / max(once, 1e-9)), 1), _MOST_CALLS)
        rounds = [self._round(call, calls) for _ in range(self.effort.rounds)]
        return of_ranks(self._shared(statistics.median(rounds)))

    def is_short(self, expected_s: float) -> bool:
        """Return whether a call of these seconds is measured: the same on every rank."""
        return expected_s <= self.effort.call_s and max(self._shared(time.perf_counter() - self._end)) < 0

    def _round(self, call: Callable[[], object], calls: int) -> float:
        _finish()
        if self._group is not None:
            torch.distributed.barrier(group=self._group)
        begun = time.perf_counter()
        for _ in range(calls):
            call()
        _finish()
        return (time.perf_counter() - begun) / calls

    def _shared(self, seconds: float) -> list[float]:
        if self._group is None:
            return [seconds]
        found = [torch.zeros(1, dtype=torch.float64) for _ in range(self.ranks)]
        own = torch.tensor([seconds], dtype=torch.float64)
        torch.distributed.all_gather(found, own, group=self._group)
        return [one.item() for one in found]


def _finish() -> None:
    """Wait until the chip has done what it was given."""
    if not chip().is_host_processor:
        torch.accelerator.synchronize()
