"""Record metrics.jsonl and print the progress line.

Each line of metrics.jsonl is one JSON object, appended by a single write.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flagscale.files import write_atomic
from flagscale.formats import duration, key_text, quantity
from megatron.flagscale.chips import chip
from megatron.flagscale.metrics.tracking import Tracking


class MetricsFile:
    """An append-only file of JSON lines, readable at any time.

    A resumed run continues it: `forget_after(n)` atomically drops the lines of iterations after `n`, which
    that run will repeat, and any incomplete line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, record: Mapping[str, Any]) -> None:
        """Append one line with a single write."""
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
            write_atomic(self.path, b"".join(kept))


def _iteration_of(line: bytes) -> float:
    """Return the iteration of a line, or infinity if the line is incomplete."""
    try:
        return int(json.loads(line)["iteration"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


class Meter:
    """Averages over the iterations since the last logged one."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.iterations = 0
        self.skipped = 0
        self.tokens = 0.0
        self.flops = 0.0
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

    def add_work(self, tokens: float, flops: float) -> None:
        """Add the tokens of an iteration, and the floating-point operations that they need."""
        self.tokens += tokens
        self.flops += flops

    def losses(self) -> dict[str, float]:
        """Return the mean of each loss over the iterations that were not skipped."""
        steps = max(1, self.iterations - self.skipped)
        return {_key(name): float(total) / steps for name, total in self._sums.items()}


def _key(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


class Recorder:
    """Turns the trainer's reports into lines of metrics.jsonl and progress lines."""

    def __init__(self, path: str | None, tracking: Tracking | None = None) -> None:
        self.file = MetricsFile(Path(path)) if path else None
        self._tracking = tracking
        self.meter = Meter()
        self._started = False
        self._active_seconds = 0.0

    def start(self, last_done: int) -> None:
        """Drop, once before the first line, an earlier run's lines after the resumed iteration."""
        if not self._started and self.file:
            self.file.forget_after(last_done)
        self._started = True

    def iteration(self, args: Any, iteration: int, active_seconds: float, figures: Mapping[str, Any]) -> None:
        """Report the iterations since the last call; `figures` holds values that only the trainer has."""
        passed = active_seconds - self._active_seconds
        seconds = passed / max(1, self.meter.iterations)
        self._active_seconds = active_seconds
        record = {
            "iteration": iteration,
            "train_iters": args.train_iters,
            "consumed_samples": args.consumed_train_samples,
            **self.meter.losses(),
            **figures,
            "iteration_ms": seconds * 1000,
            "tokens_per_s": self.meter.tokens / passed,
            "tflops_per_gpu": self.meter.flops / passed / 1e12 / args.world_size,
            "mem_bytes": chip().memory_bytes(),
            "skipped": self.meter.skipped,
            "time": time.time(),
        }
        self.meter.reset()
        self._write(record)
        print(progress_line(record), flush=True)

    def evaluation(
        self, args: Any, iteration: int, split: str, name: str, losses: Mapping[str, float]
    ) -> None:
        """Report the losses on the validation or test data, or on the set with this name among several."""
        of_set = f"/{name}" if name else ""
        named = {f"{split}_{_key(kind).removeprefix('lm_')}{of_set}": loss for kind, loss in losses.items()}
        self._write(
            {
                "iteration": iteration,
                "consumed_samples": args.consumed_train_samples,
                **named,
                "time": time.time(),
            }
        )
        reported = " | ".join(f"{key_text(key)} {value:.4f}" for key, value in named.items())
        print(f"iteration {iteration}/{args.train_iters} | {reported}", flush=True)

    def _write(self, record: Mapping[str, Any]) -> None:
        if self.file:
            self.file.append(record)
        if self._tracking:
            self._tracking.add(record)


def progress_line(record: Mapping[str, Any]) -> str:
    """Return the progress line for one logged iteration."""
    seconds = record["iteration_ms"] / 1000
    parts = [f"iteration {record['iteration']}/{record['train_iters']}"]
    if "lm_loss" in record:
        parts.append(f"loss {record['lm_loss']:.4f}")
    if record["learning_rate"] is not None:
        parts.append(f"lr {record['learning_rate']:.2e}")
    if record["grad_norm"] is not None:
        parts.append(f"grad norm {record['grad_norm']:.3f}")
    parts.append(f"{seconds:.2f} s/it" if seconds >= 0.1 else f"{seconds * 1000:.1f} ms/it")
    parts.append(f"{quantity(record['tokens_per_s'])} tokens/s")
    if record["skipped"]:
        parts.append(f"{record['skipped']} skipped")
    parts.append(f"{duration(seconds * (record['train_iters'] - record['iteration']))} left")
    return " | ".join(parts)
