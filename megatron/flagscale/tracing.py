"""Record the operations of chosen ranks in chosen iterations with torch's profiler (`profile`).

The engine counts the iterations from where the run started, so that a run that resumes would record none, and
writes beside `tensorboard_dir` without the iterations in the name. Here each rank writes to `trace_dir`

- `rank-R.iterations-A-B.json.gz`, a trace for Perfetto (ui.perfetto.dev) or chrome://tracing,
- `rank-R.iterations-A-B.txt`, a table of the most expensive operations,
- with `record_memory_history` on chips that can record it, `rank-R.iterations-A-B.memory.pickle`, for
  pytorch.org/memory_viz; on the others, the trace and the table contain the memory.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flagscale.checks.tracing import MEMORY, PROFILE, PROFILER, RANKS, START, last_iteration
from flagscale.files import write_atomic
from megatron.flagscale.chips import chip

if TYPE_CHECKING:
    import torch

_ROWS = 40
"""Operations in a table."""


def add_tracing_args(group: argparse._ArgumentGroup) -> None:
    """Add `--trace-dir`; all other arguments of traces are the engine's."""
    group.add_argument(
        "--trace-dir",
        default="traces",
        metavar="FOLDER",
        help="With --profile and --use-pytorch-profiler: write traces, tables and records of memory there.",
    )


class Tracer:
    """Records this rank's iterations `first` to `last`, and writes them to `folder` after the last one."""

    def __init__(self, args: Any) -> None:
        self.first, self.last = getattr(args, START), last_iteration(vars(args))
        self._folder, self._rank = Path(args.trace_dir), args.rank
        self._shapes = args.pytorch_profiler_collect_shapes
        self._stacks = args.pytorch_profiler_collect_callstack
        self._chakra = args.pytorch_profiler_collect_chakra
        self._memory = getattr(args, MEMORY)
        self._profiler: torch.profiler.profile | None = None
        self._recording = contextlib.ExitStack()
        self._write_memory: Callable[[Path], None] | None = None
        self._is_done = False

    def before(self, iteration: int) -> None:
        """Begin if `iteration`, which comes next, is to be recorded; end if those to be recorded are over."""
        with self._failing_quietly():
            if iteration > self.last:
                self._end()
            elif iteration >= self.first and not (self._is_done or self._profiler):
                self._begin(iteration)

    def after(self, iteration: int) -> None:
        """End if `iteration`, which is over, was the last one to be recorded."""
        with self._failing_quietly():
            if iteration >= self.last:
                self._end()

    @contextlib.contextmanager
    def _failing_quietly(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._is_done = True
            what = f"the trace cannot be written to {self._folder}: {error.strerror or error}"
            print(f"flagscale: {what}; the training continues", flush=True)

    def _begin(self, iteration: int) -> None:
        import torch

        self.first = iteration  # later than asked for if the run resumed there
        self._folder.mkdir(parents=True, exist_ok=True)
        record = chip().record_memory if self._memory else None
        self._write_memory = record() if record else None
        observer = None
        if self._chakra:
            file = str(self._path("chakra.json.gz"))
            observer = torch.profiler.ExecutionTraceObserver().register_callback(file)
        profiler = torch.profiler.profile(
            record_shapes=self._shapes,
            with_stack=self._stacks,
            profile_memory=self._memory and record is None,
            execution_trace_observer=observer,
        )
        self._profiler = self._recording.enter_context(profiler)

    def _end(self) -> None:
        if self._profiler is None:
            return
        profiler, self._profiler, self._is_done = self._profiler, None, True
        self._recording.close()
        self._write(profiler)

    def _write(self, profiler: torch.profiler.profile) -> None:
        trace = self._path("json.gz")
        temporary = trace.with_name(f".writing.{trace.name}")
        profiler.export_chrome_trace(str(temporary))
        os.replace(temporary, trace)
        order = "self_cpu_time_total" if chip().is_host_processor else "self_device_time_total"
        table = profiler.key_averages(group_by_input_shape=self._shapes).table(sort_by=order, row_limit=_ROWS)
        title = f"rank {self._rank}, iterations {self.first} to {self.last}"
        write_atomic(self._path("txt"), f"{title}: the {_ROWS} most expensive operations\n{table}\n")
        if self._write_memory:
            self._write_memory(self._path("memory.pickle"))
        print(f"flagscale: trace of {title}: {trace}, with a table beside it (.txt)", flush=True)

    def _path(self, ending: str) -> Path:
        name = f"rank-{self._rank}.iterations-{self.first}-{self.last}.{ending}"
        return self._folder / name


_tracers: list[Tracer] = []
"""The one of this process, if its rank is recorded."""


def prepare_tracing(args: Any) -> None:
    """Take over what the arguments ask of torch's profiler, before the engine reads them."""
    if not (getattr(args, PROFILE) and getattr(args, PROFILER)):
        return
    ranks = getattr(args, RANKS)
    _tracers[:] = [Tracer(args)] if not ranks or args.rank in ranks else []
    setattr(args, PROFILE, False)
    setattr(args, MEMORY, False)


def recorded(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the trainer's `train_step` that records the iterations asked for on this rank."""

    @functools.wraps(original)
    def train_step(*positional: Any, **named: Any) -> Any:
        if not _tracers:
            return original(*positional, **named)
        number = named["iteration"] + 1  # the trainer counts from 0
        _tracers[0].before(number)
        outcome = original(*positional, **named)
        _tracers[0].after(number)
        return outcome

    return train_step
