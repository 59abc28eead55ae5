"""Compare our launcher with plain torchrun of the same worker: time to the first iteration, and step time.

Both start the same program with the same arguments on the same two ranks, alternately, in one run of this
script: ours by `run.py action=test` (checks, scripts, supervisor, metrics, followed logs), theirs as
`torchrun` without metrics file and supervisor. A third side is a Hydra app that only composes the same files:
any launcher on Hydra needs that time before it starts anything. Prints, as medians and intervals over rounds,
the difference of the times to the first iteration, with and without that time, and the ratio of the step
times.

    python benchmarks/launch_overhead.py [--rounds 5] [--iterations 30]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from flagscale.run.rundir import RunDir

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ["--config-path", str(ROOT / "examples/aquila/conf"), "--config-name", "config"]
MODEL = [
    "experiment.runner.platform=cpu",
    "experiment.runner.nproc_per_node=2",
    "train.system.tensor_model_parallel_size=1",
    "~train.data.train_data_path",
    "~train.data.valid_data_path",
    "train.data.tokenizer.tokenizer_type=NullTokenizer",
    "train.data.tokenizer.tokenizer_model=null",
    "+train.data.tokenizer.vocab_size=8191",
    "+train.data.mock_data=true",
    "+train.system.checkpoint.save=null",
    "train.model.eval_iters=0",
]


@dataclass(frozen=True)
class Timing:
    """Seconds from the command to the end of iteration 1, and of the median later iteration."""

    first: float
    step: float


def ours(folder: Path, iterations: int) -> Timing:
    """Time `run.py action=test`."""
    begun = time.time()
    subprocess.run(command(folder, iterations, "test"), check=True, stdout=subprocess.DEVNULL, cwd=folder)
    lines = [json.loads(line) for line in RunDir(folder).metrics.read_text().splitlines()]
    return _timing(begun, [line["time"] for line in lines if "iteration_ms" in line])


def theirs(folder: Path, iterations: int) -> Timing:
    """Time plain torchrun with the argv of our plan, without the metrics file."""
    argv = _argv(folder, iterations)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = ["--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    begun = time.time()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            *words,
            "--module",
            "megatron.flagscale.train_gpt",
            *argv,
        ],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    times = [time.time() for line in process.stdout if re.search(r"iteration \d+/\d+ \| loss", line)]
    if process.wait():
        raise SystemExit(f"torchrun failed with exit code {process.returncode}")
    return _timing(begun, times)


def composing(folder: Path, iterations: int) -> float:
    """Return the seconds that a Hydra app takes to compose what our command composes."""
    python, _, *words = command(folder, iterations, "test")
    # Without `++`, Hydra refuses a key that no file has.
    words = [f"++{word}" if "=" in word and word[0] not in "-~+" else word for word in words]
    begun = time.time()
    subprocess.run([python, str(ROOT / "benchmarks/composing_app.py"), *words], check=True, cwd=folder)
    return time.time() - begun


def _timing(begun: float, times: list[float]) -> Timing:
    steps = [later - earlier for earlier, later in itertools.pairwise(times[4:])]
    return Timing(times[0] - begun, statistics.median(steps))


def command(folder: Path, iterations: int, action: str) -> list[str]:
    """Return our command line for the job, with `folder` as its run directory."""
    overrides = [
        *MODEL,
        f"experiment.exp_dir={folder}",
        f"train.model.train_iters={iterations}",
        f"action={action}",
    ]
    return [sys.executable, str(ROOT / "run.py"), *CONFIG, *overrides]


def _argv(folder: Path, iterations: int) -> list[str]:
    """Return the worker's arguments of our plan, without the metrics file."""
    printed = subprocess.run(
        command(folder, iterations, "dryrun"), check=True, capture_output=True, text=True, cwd=folder
    ).stdout
    start = printed.index("--module megatron.flagscale.train_gpt")
    lines = printed[start : printed.index("set -eo pipefail")].splitlines()[1:]
    return [word for line in lines if "--metrics-file" not in line for word in line.removeprefix("#").split()]


def main() -> None:
    """Run the rounds and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=30)
    arguments = parser.parse_args()
    rounds: list[tuple[Timing, Timing, float]] = []
    for number in range(arguments.rounds + 1):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            # The order alternates from pair to pair, so that warm-up effects favour neither side.
            if number % 2:
                b, a = theirs(Path(other), arguments.iterations), ours(Path(one), arguments.iterations)
            else:
                a, b = ours(Path(one), arguments.iterations), theirs(Path(other), arguments.iterations)
            alone = composing(Path(one), arguments.iterations)
        if number:  # the first round warms the file cache
            rounds.append((a, b, alone))
            print(
                f"round {number}: first iteration {a.first:.2f} s / {b.first:.2f} s, "
                f"composing alone {alone:.2f} s, step {a.step:.4f} s / {b.step:.4f} s"
            )
    later = [a.first - b.first for a, b, _ in rounds]
    beyond = [a.first - b.first - alone for a, b, alone in rounds]
    steps = [a.step / b.step for a, b, _ in rounds]
    print(f"to the first iteration: flagscale - torchrun = {_described(later)} s")
    print(f"          beyond a Hydra app that only composes: {_described(beyond)} s")
    print(f"step time:              flagscale / torchrun = {_described(steps)}")


def _described(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
