"""Measure how long this rank's forward and backward passes take, compare the ranks, report slow ones.

Only logged iterations are measured. On a device, events mark the begin and the end of each pass; they are
read after the iteration, so that nothing waits for the device. One gathering of 4 bytes per rank compares
them.
"""

from __future__ import annotations

import functools
import socket
import time
from collections.abc import Callable
from typing import Any

from flagscale.checks.steering import SLOW_FACTOR
from megatron.flagscale.patching import Patch
from megatron.flagscale.steering.lagging import INTERVALS, Lag, factors_of, following, named


class PassClock:
    """The seconds of the passes of one iteration on this rank."""

    def __init__(self) -> None:
        from megatron.flagscale.chips import chip

        self.is_running = False
        self._is_on_host = chip().is_host_processor
        self._marks: list[tuple[Any, Any]] = []

    def timed(self, run: Callable[[], Any]) -> Any:
        """Run one pass and return its result."""
        begin = self._mark()
        result = run()
        self._marks.append((begin, self._mark()))
        return result

    def read(self) -> float:
        """Return the seconds of the passes since the last call."""
        marks, self._marks = self._marks, []
        if self._is_on_host:
            return float(sum(end - begin for begin, end in marks))
        if marks:
            marks[-1][1].synchronize()
        return float(sum(begin.elapsed_time(end) for begin, end in marks)) / 1000

    def _mark(self) -> Any:
        if self._is_on_host:
            return time.perf_counter()
        import torch

        event = torch.Event(enable_timing=True)
        event.record()
        return event


@functools.cache
def pass_clock() -> PassClock:
    """Return the clock of this process, which runs in the iterations whose passes are measured."""
    return PassClock()


def compares(args: Any) -> bool:
    """Return whether the ranks of this training are compared: a graph of a whole iteration has no passes."""
    return (
        bool(getattr(args, SLOW_FACTOR)) and args.world_size > 1 and args.cuda_graph_impl != "full_iteration"
    )


def _timed(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def run(*positional: Any, **named: Any) -> Any:
        clock = pass_clock()
        if not clock.is_running:
            return original(*positional, **named)
        return clock.timed(functools.partial(original, *positional, **named))

    return run


class Comparison:
    """Compares all ranks at each logged iteration; all of them have to make it, and call it, together."""

    def __init__(self, limit: float) -> None:
        import torch
        from megatron.core import mpu

        own = (mpu.get_pipeline_model_parallel_rank(), socket.gethostname())
        places: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(places, own)
        self._limit = limit
        self._stages = [stage for stage, _ in places]
        self._hosts = [host for _, host in places]
        self._lags: dict[int, Lag] = {}

    def slow_ranks(self) -> list[dict[str, Any]]:
        """Return the ranks that are slow, for metrics.jsonl. Print each when it becomes so."""
        from megatron.training import is_last_rank

        seconds = _gathered(pass_clock().read())
        is_measured = any(seconds)
        if is_measured:
            self._lags = following(self._lags, factors_of(seconds, self._stages), self._limit)
        slow = named(self._lags)
        for lag in slow:
            if is_measured and lag.intervals == INTERVALS and is_last_rank():
                place = f"rank {lag.rank} on {self._hosts[lag.rank]}"
                what = f"computes {lag.factor:.2f} times as long as the median rank of its stage"
                print(f"flagscale: {place} {what}", flush=True)
        return [
            {"rank": lag.rank, "host": self._hosts[lag.rank], "factor": round(lag.factor, 3)} for lag in slow
        ]


def _gathered(own: float) -> list[float]:
    """Return the value of each rank."""
    import torch

    from megatron.flagscale.chips import chip

    mine = torch.tensor([own], dtype=torch.float32, device=chip().device())
    found = mine.new_empty(torch.distributed.get_world_size())
    torch.distributed.all_gather_into_tensor(found, mine)
    values: list[float] = found.tolist()
    return values


_WHY = "The trainer's timers of a pass wait for the device, and compare no ranks."
_UNTIL = "the trainer reports slow ranks, without waiting for the device"

PATCHES = tuple(
    Patch(f"megatron.core.pipeline_parallel.schedules:{name}", _timed, _WHY, "worker", until=_UNTIL)
    for name in ("forward_step", "backward_step")
)
