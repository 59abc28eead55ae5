"""The outcome of one trial: the time of a step, the memory, or why it has neither."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Any, Literal

from flagscale.formats import count
from flagscale.run.failure import is_out_of_memory
from flagscale.status.model import JobStatus

State = Literal["measured", "failed", "out of memory", "too slow", "refused"]

WARM_UP = 2
"""Iterations at the beginning that are left out, if at least as many remain."""


@dataclass(frozen=True)
class Outcome:
    """The result of a trial; times in seconds, memory in bytes."""

    state: State
    seconds: float | None = None
    """Per step: the mean of the middle half of the iterations after those that warm up."""
    nbytes: int | None = None
    """The largest memory that the rank which writes the metrics has used."""
    iterations: tuple[float, ...] = ()
    """Every logged time of a step, the first ones too."""
    failure: str = ""


def outcome_of(
    status: JobStatus, records: Sequence[Mapping[str, Any]], printed: str, limit: float, *, is_cut: bool
) -> Outcome:
    """Return the outcome of a trial from its last status, the records of its metrics, and what it printed.

    `is_cut`: it was stopped because `limit` seconds had passed. What it had measured until then counts.
    """
    times = tuple(float(one["iteration_ms"]) / 1000 for one in records if "iteration_ms" in one)
    memory = [int(one["mem_bytes"]) for one in records if one.get("mem_bytes")]
    nbytes = max(memory, default=None)
    if status.failure and not is_cut:
        host, failure = status.failure
        rank = f" rank {failure.rank}:" if failure.rank is not None else ""
        text, seen = f"{host}:{rank} {failure.message}", f"{failure.message}\n{failure.traceback}"
        if not failure.traceback and (cause := _cause(printed)):  # a program that does not report its errors
            text, seen = f"{text}: {cause}", cause
        state: State = "out of memory" if is_out_of_memory(seen) else "failed"
        return Outcome(state, nbytes=nbytes, iterations=times, failure=text)
    if seconds := step_seconds(times):
        return Outcome("measured", seconds, nbytes, times)
    if is_cut:
        what = count(len(times), "iteration") if times else "no iteration"
        return Outcome("too slow", None, nbytes, times, f"{what} within {limit:g} s (max_time_per_task)")
    why = status.reason or f"it ended ({status.phase}) without a time: the metrics have no `iteration_ms`"
    return Outcome("failed", None, nbytes, times, why)


_ERROR = re.compile(r"\b\w*(Error|Exception): .*")


def _cause(printed: str) -> str:
    """Return the line that best explains a failure: memory that was short, else the first exception."""
    lines = printed.splitlines()
    short = next((line for line in lines if is_out_of_memory(line)), "")
    found = _ERROR.search(short) or next(filter(None, map(_ERROR.search, lines)), None)
    return found[0] if found else short.strip()


def step_seconds(times: Sequence[float]) -> float | None:
    """Return the mean of the middle half of the times after the warm-up; None if there are fewer than two."""
    if len(times) < 2:
        return None
    ordered = sorted(_steady(times))
    cut = len(ordered) // 4
    return fmean(ordered[cut : len(ordered) - cut])


def noise_of(times: Sequence[float]) -> float:
    """Return the relative standard error of the time of a step that these iterations give; 0 if unknown."""
    steady = _steady(times)
    return stdev(steady) / fmean(steady) / sqrt(len(steady)) if len(steady) > 1 else 0.0


def _steady(times: Sequence[float]) -> Sequence[float]:
    """Return the times of the iterations after those that warm up."""
    return times[WARM_UP if len(times) >= 2 * WARM_UP else 1 :]
