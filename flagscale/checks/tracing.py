"""Rules for traces: what torch's profiler records of chosen ranks in chosen iterations (`profile`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.errors import Violation

PROFILE, PROFILER, RANKS = "profile", "use_pytorch_profiler", "profile_ranks"
START, END, MEMORY = "profile_step_start", "profile_step_end", "record_memory_history"
_DEFAULTS: Mapping[str, Any] = {START: 10, END: 12, RANKS: [], "memory_snapshot_path": "snapshot.pickle"}
"""Defaults of the engine; those of all other arguments are false."""
_OF_TORCH = (
    *(MEMORY, "pytorch_profiler_collect_shapes", "pytorch_profiler_collect_callstack"),
    "pytorch_profiler_collect_chakra",
)
_OF_NSYS = {"record_shapes": "pytorch_profiler_collect_shapes", "nvtx_ranges": ""}
"""Arguments for NVIDIA's profiler, and those for torch's with the same meaning."""
_MANY = 10
"""Iterations above which a trace deserves a notice."""


def tracing_violations(values: Mapping[str, Any], has_chip: bool) -> Iterator[Violation]:
    """Yield the arguments (by dest) about traces that are wrong or would have no effect."""
    if not values.get(PROFILE):
        for name in (PROFILER, RANKS, START, END, *_OF_TORCH, "record_shapes"):
            if _is_changed(values, name):
                yield name, f"`{name}` has no effect without `{PROFILE}: true`"
        return
    if not values.get(PROFILER):
        for name in _OF_TORCH:
            if _is_changed(values, name):
                yield name, f"`{name}` has no effect without `{PROFILER}: true`"
        if not has_chip:
            what = "without it, the engine controls NVIDIA's `nsys`, which has no data on CPU"
            yield PROFILE, f"`{PROFILE}` needs `{PROFILER}: true` here: {what}"
        return
    for name, instead in _OF_NSYS.items():
        if values.get(name):
            use = f"use `{instead}`" if instead else "remove it"
            yield name, f"`{name}` is for `nsys` and has no effect with `{PROFILER}`; {use}"
    if _is_changed(values, "memory_snapshot_path"):
        what = "the memory of each rank is written beside its trace, in `trace_dir`"
        yield "memory_snapshot_path", f"`memory_snapshot_path` has no effect: {what}; remove it"
    start, end, until = values.get(START), values.get(END), values.get("train_iters")
    if start is None or end is None:
        return
    if start < 1:
        yield START, f"`{START}` must be at least 1, the first iteration, not {start}"
    elif end <= start:
        what = f"`{END}` {end} must be larger than `{START}` {start}"
        yield END, f"{what}: iterations {START} to {END} - 1 are recorded"
    elif until is not None and start > until:
        yield START, f"`{START}` {start} is after the last iteration, {until}: nothing would be recorded"


def tracing_remarks(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield what a user may not expect of a trace: that it is shorter than asked for, or very large."""
    if not (values.get(PROFILE) and values.get(PROFILER)):
        return
    until, last = values.get("train_iters"), last_iteration(values)
    if until and values[END] - 1 > until:
        yield END, f"the training ends before: iterations {values[START]} to {last} are recorded"
    if (number := last - values[START] + 1) > _MANY:
        what = f"{number} iterations are recorded; a rank holds all of their operations in memory until then"
        yield END, f"{what}, and one large file is hard to open: 2 to {_MANY} are usually enough"


def traced_rank_violations(values: Mapping[str, Any], world_size: int) -> Iterator[Violation]:
    """Yield that `profile_ranks` names ranks that a job of `world_size` ranks does not have."""
    ranks = values.get(RANKS) or ()
    if wrong := [rank for rank in ranks if not 0 <= rank < world_size]:
        shown = ", ".join(map(str, wrong))
        yield RANKS, f"`{RANKS}` names ranks that do not exist: {shown}; the job has 0 to {world_size - 1}"


def last_iteration(values: Mapping[str, Any]) -> int:
    """Return the last iteration that is recorded: the one before `profile_step_end`, or that of the run."""
    return int(min(values[END] - 1, values.get("train_iters") or values[END]))


def _is_changed(values: Mapping[str, Any], name: str) -> bool:
    return (values.get(name) or False) != (_DEFAULTS.get(name) or False)
