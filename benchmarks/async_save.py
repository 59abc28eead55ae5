"""Measure how long a save stops the training: synchronous and asynchronous saves, compared in one run.

One process trains a model, alternately with each kind, and saves at the same steps. It prints, in seconds:
`stopped`, the time that a save delays the trainer's next step, including all later work to finish the save;
`on disk`, the time until the checkpoint is complete; `steps`, the time of all steps without the saves: an
asynchronous save takes CPU time and memory from them while it is written.

    python -m benchmarks.async_save [--layers 8] [--hidden-size 1024] [--repeats 2] [--folder PATH]
"""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from flagscale_testing.ranks.training import MOCK_DATA, ROOT, environment, torchrun

_SAVE_INTERVAL = 12  # steps; enough time to write a checkpoint, because a save waits for the one before it
_STEPS = 2 * _SAVE_INTERVAL  # the first save is in the middle of training, the last does not count
_EVENTS = "events.json"


@dataclass(frozen=True)
class Measured:
    """The seconds that one kind of saving takes."""

    stopped: float
    on_disk: float
    steps: float


def main() -> None:
    """Measure both kinds and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to save; removed afterwards (default: temporary)")
    asked = parser.parse_args()
    kinds: dict[str, list[Measured]] = {"synchronous": [], "asynchronous": []}
    size = 0
    for _ in range(asked.repeats):
        for kind, runs in kinds.items():
            with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
                _train(Path(folder), kind == "asynchronous", asked.layers, asked.hidden_size)
                saved = Path(folder, "saved", f"iter_{_SAVE_INTERVAL:07d}")
                size = sum(file.stat().st_size for file in saved.iterdir())
                runs.append(_measured(json.loads(Path(folder, _EVENTS).read_text())))
    print(f"checkpoints of {size / 1e9:.2f} GB; seconds, medians of {asked.repeats} runs")
    print(f"{'':14}{'stopped':>10}{'on disk':>10}{'steps':>10}")
    rows = [
        [statistics.median(column) for column in zip(*map(astuple, runs), strict=True)]
        for runs in kinds.values()
    ]
    for kind, row in zip(kinds, rows, strict=True):
        print(f"{kind:14}" + "".join(f"{seconds:10.2f}" for seconds in row))
    print(f"{'ratio':14}" + "".join(f"{sync / other:10.2f}" for sync, other in zip(*rows, strict=True)))


def _train(folder: Path, asynchronous: bool, layers: int, hidden_size: int) -> None:
    argv = shlex.split(f"""
        --num-layers {layers} --hidden-size {hidden_size} --num-attention-heads 8 --seq-length 128
        --max-position-embeddings 128 --micro-batch-size 1 --global-batch-size 1 --lr 1e-4
        --train-iters {_STEPS} --save-interval {_SAVE_INTERVAL} --eval-iters 0 --log-interval 1
    """)
    argv += [*MOCK_DATA, "--save", str(folder / "saved"), *(["--async-save"] if asynchronous else [])]
    command = torchrun(1, "-m", "benchmarks.async_save", "--worker", str(folder), *argv)
    subprocess.run(command, cwd=ROOT, env=environment(), check=True, stdout=subprocess.DEVNULL)


def _measured(events: list[tuple[str, float, float]]) -> Measured:
    """Return the seconds of the first save, up to the second save, from the events of the worker."""
    first, second = (start for name, start, _ in events if name == "save")
    stopped = [
        end - start for name, start, end in events if name in ("save", "poll") and first <= start < second
    ]
    done = next(end for name, _, end in events if name == "done")
    return Measured(
        sum(stopped),
        done - first,
        sum(end - start for name, start, end in events if name == "step"),
    )


def _worker(folder: Path, argv: list[str]) -> None:
    """Train in this process, and record when the trainer stepped, saved and polled pending saves."""
    from megatron.flagscale.bootstrap import patch_engine

    patch_engine()
    from megatron.training import training

    from megatron.flagscale.checkpoint import save as saving
    from megatron.flagscale.program import train

    events: list[tuple[str, float, float]] = []
    open_calls: list[str] = []

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*positional: Any, **named: Any) -> Any:
            open_calls.append(name)
            start = time.perf_counter()
            outcome = function(*positional, **named)
            open_calls.pop()
            if not open_calls or name == "done":  # a save polls the one before it: count that once
                events.append((name, start, time.perf_counter()))
            return outcome

        return call

    targets = (("step", "train_step"), ("save", "save_checkpoint"), ("poll", "maybe_finalize_async_save"))
    for name, attribute in targets:
        setattr(training, attribute, noted(name, getattr(training, attribute)))
    saving.write_manifest = noted("done", saving.write_manifest)
    train(argv)
    (folder / _EVENTS).write_text(json.dumps(events))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        _worker(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
