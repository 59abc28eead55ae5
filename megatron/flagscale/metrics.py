"""metrics.jsonl and the progress line: how a run tells what it does.

One rank writes: the last one, which owns the loss. Each line is one JSON object, appended by one write.
"""

from __future__ import annotations

import functools
import json
import math
import os
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron.flagscale.patches import Patch


class MetricsFile:
    """An append-only file of JSON lines, readable at any time.

    A resumed run continues it: `forget_after(n)` drops, in one atomic step, the lines of iterations beyond
    `n`, which that run will do again, and anything half-written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, record: Mapping[str, Any]) -> None:
        """Append one line by a single write."""
        line = json.dumps(record) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def forget_after(self, iteration: int) -> None:
        """Keep only the lines up to `iteration`."""
        if not self.path.exists():
            return
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if _iteration_of(line) <= iteration]
        if kept != lines:
            scratch = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
            scratch.write_bytes(b"".join(kept))
            os.replace(scratch, self.path)


def _iteration_of(line: bytes) -> float:
    """Return the iteration a line tells about; infinity for a line that was not written whole."""
    try:
        return int(json.loads(line)["iteration"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


class Meter:
    """Averages of what happened since the last logged iteration."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.iterations = 0
        self.skipped = 0
        self._sums: dict[str, Any] = {}

    def add(self, losses: Mapping[str, Any], skipped: bool) -> None:
        """Count one iteration; losses stay tensors, so that nothing waits for the device."""
        self.iterations += 1
        if skipped:
            self.skipped += 1
            return
        for name, loss in losses.items():
            self._sums[name] = (
                self._sums[name] + loss.detach().double() if name in self._sums else loss.double()
            )

    def losses(self) -> dict[str, float]:
        """Return the mean of each loss over the iterations that were not skipped."""
        steps = max(1, self.iterations - self.skipped)
        return {_key(name): float(total) / steps for name, total in self._sums.items()}


def _key(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


class Recorder:
    """Turns what the trainer reports into lines of metrics.jsonl and of progress."""

    def __init__(self, path: str | None) -> None:
        self.file = MetricsFile(Path(path)) if path else None
        self.meter = Meter()
        self._started = False
        self._active_seconds = 0.0

    def start(self, last_done: int) -> None:
        """Once, before the first line: forget what an earlier run did beyond the resumed iteration."""
        if not self._started and self.file:
            self.file.forget_after(last_done)
        self._started = True

    def iteration(self, args: Any, iteration: int, active_seconds: float, figures: Mapping[str, Any]) -> None:
        """Report the iterations since the last call; `figures` holds what only the trainer knows."""
        seconds = (active_seconds - self._active_seconds) / max(1, self.meter.iterations)
        self._active_seconds = active_seconds
        record = {
            "iteration": iteration,
            "train_iters": args.train_iters,
            "consumed_samples": args.consumed_train_samples,
            "consumed_tokens": args.consumed_train_samples * args.seq_length,
            **self.meter.losses(),
            **figures,
            "iteration_ms": seconds * 1000,
            "tokens_per_s": figures["batch_size"] * args.seq_length / seconds,
            "tflops_per_gpu": figures["flops"] / seconds / 1e12 / args.world_size,
            "mem_bytes": memory_bytes(),
            "skipped": self.meter.skipped,
            "time": time.time(),
        }
        del record["flops"]
        self.meter.reset()
        if self.file:
            self.file.append(record)
        print(progress_line(record), flush=True)

    def evaluation(self, args: Any, iteration: int, split: str, losses: Mapping[str, float]) -> None:
        """Report the losses on the validation or test data."""
        named = {f"{split}_{_key(name).removeprefix('lm_')}": value for name, value in losses.items()}
        if self.file:
            self.file.append(
                {
                    "iteration": iteration,
                    "consumed_samples": args.consumed_train_samples,
                    **named,
                    "time": time.time(),
                }
            )
        told = " | ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in named.items())
        print(f"iteration {iteration}/{args.train_iters} | {told}", flush=True)


def progress_line(record: Mapping[str, Any]) -> str:
    """Return the line a person reads for one logged iteration."""
    seconds = record["iteration_ms"] / 1000
    parts = [f"iteration {record['iteration']}/{record['train_iters']}"]
    if "lm_loss" in record:
        parts.append(f"loss {record['lm_loss']:.4f}")
    if record["learning_rate"] is not None:
        parts.append(f"lr {record['learning_rate']:.2e}")
    if record["grad_norm"] is not None:
        parts.append(f"grad norm {record['grad_norm']:.3f}")
    parts.append(f"{seconds:.2f} s/it" if seconds >= 0.1 else f"{seconds * 1000:.1f} ms/it")
    parts.append(f"{_short(record['tokens_per_s'])} tokens/s")
    if record["skipped"]:
        parts.append(f"{record['skipped']} skipped")
    parts.append(f"{_clock(seconds * (record['train_iters'] - record['iteration']))} left")
    return " | ".join(parts)


def _short(number: float) -> str:
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.0f}" if not unit else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.0f}T"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def memory_bytes() -> int:
    """Return the most memory this rank held: on its CUDA device, else in the process."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@functools.cache
def recorder() -> Recorder | None:
    """Return this process's recorder; None on the ranks that do not report."""
    from megatron.training import get_args, is_last_rank

    return Recorder(get_args().metrics_file) if is_last_rank() else None


def _record_training(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def training_log(
        loss_dict: Mapping[str, Any],
        total_loss_dict: dict[str, Any],
        learning_rate: float | None,
        iteration: int,
        loss_scale: float,
        report_memory_flag: bool,
        skipped_iter: int,
        grad_norm: float | None,
        *rest: Any,
        **named: Any,
    ) -> Any:
        from megatron.core.num_microbatches_calculator import get_current_global_batch_size
        from megatron.training import get_args, get_timers
        from megatron.training.training import num_floating_point_operations

        report = recorder()
        if report:
            report.start(iteration - 1)
            report.meter.add(loss_dict, bool(skipped_iter))
        outcome = original(
            loss_dict,
            total_loss_dict,
            learning_rate,
            iteration,
            loss_scale,
            False,  # no memory report of twenty lines: each metrics line holds the memory
            skipped_iter,
            grad_norm,
            *rest,
            **named,
        )
        args = get_args()
        if report and (iteration % args.log_interval == 0 or named.get("is_first_iteration")):
            batch_size = get_current_global_batch_size()
            figures = {
                "batch_size": batch_size,
                "flops": num_floating_point_operations(args, batch_size),
                "learning_rate": learning_rate,
                "grad_norm": None if grad_norm is None else float(grad_norm),
                "loss_scale": float(loss_scale),
            }
            report.iteration(args, iteration, get_timers()("interval-time").active_time(), figures)
        return outcome

    return training_log


# The split and iteration of the evaluation that is going on, told by the outer function to the inner one.
_evaluating: tuple[str, int] = ("validation", 0)


def _name_evaluation(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def evaluate_and_print_results(
        prefix: str, forward_step: Any, data: Any, model: Any, iteration: int, *rest: Any, **named: Any
    ) -> Any:
        global _evaluating
        _evaluating = ("test" if "test set" in prefix else "validation", iteration)
        return original(prefix, forward_step, data, model, iteration, *rest, **named)

    return evaluate_and_print_results


def _record_evaluation(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def evaluate(*positional: Any, **named: Any) -> Any:
        from megatron.training import get_args

        losses, collected, time_is_up = original(*positional, **named)
        report = recorder()
        if report and losses:
            split, iteration = _evaluating
            report.evaluation(
                get_args(), iteration, split, {name: float(loss) for name, loss in losses.items()}
            )
        return losses, collected, time_is_up

    return evaluate


_UNTIL = "the trainer takes a callback for what it logs"

PATCHES = (
    Patch(
        "megatron.training.training:training_log",
        _record_training,
        "The one place that sees loss, norm and speed of every iteration; it has no callback.",
        "worker",
        until=_UNTIL,
    ),
    Patch(
        "megatron.training.training:evaluate_and_print_results",
        _name_evaluation,
        "Knows which data and iteration an evaluation is about.",
        "worker",
        until=_UNTIL,
    ),
    Patch(
        "megatron.training.training:evaluate",
        _record_evaluation,
        "Returns the validation losses.",
        "worker",
        until=_UNTIL,
    ),
    Patch(
        "megatron.training.training:print_rank_last",
        lambda original: lambda message: None,
        "It prints nothing but the trainer's own lines of what the recorder tells in one.",
        "worker",
        until=_UNTIL,
    ),
)
