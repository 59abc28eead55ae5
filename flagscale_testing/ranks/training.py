"""Real runs of the training worker on CPU, with tiny models on a few ranks; many tests share each run."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flagscale import EXTENSIONS
from flagscale.run.env import FAILURE_FILE
from flagscale_testing.ports import free_port

ROOT = Path(__file__).parents[2]
PATIENCE = 480.0
"""Seconds after which a run counts as hanging, even if ten others share the CPU cores."""
SAVE_INTERVAL = 3
TRAIN_ITERS = 6

MODEL = shlex.split("""
    --num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 64 --max-position-embeddings 64
    --normalization RMSNorm --swiglu --position-embedding-type rope --disable-bias-linear
    --untie-embeddings-and-output-weights --attention-dropout 0 --hidden-dropout 0
    --micro-batch-size 2 --global-batch-size 8 --lr 1e-2 --lr-decay-style constant --weight-decay 0.1
    --use-distributed-optimizer --log-interval 1 --eval-iters 0
""")
MOCK_DATA = shlex.split("--mock-data --tokenizer-type NullTokenizer --vocab-size 255")


@dataclass(frozen=True)
class Ended:
    """A run that has ended."""

    code: int
    output: str
    failure: dict[str, Any] | None
    metrics: list[dict[str, Any]]

    def losses(self) -> dict[int, float]:
        return {line["iteration"]: line["lm_loss"] for line in self.metrics if "lm_loss" in line}


def environment(**more: str) -> dict[str, str]:
    """Return the environment that a supervisor gives a run."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("COV_", "COVERAGE_", "PYTEST_"))
    }
    roots = os.pathsep.join(str(ROOT / folder) for folder in ("", *EXTENSIONS))
    return {**inherited, "PYTHONPATH": roots, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def torchrun(ranks: int, *argv: str) -> list[str]:
    """Return the command of one host: our torchrun on a free port."""
    address = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    where = ["--nproc-per-node", str(ranks), *address]
    return [sys.executable, "-m", "megatron.flagscale.torchrun", *where, *argv]


def train(folder: Path, ranks: int, *argv: str, timeout: float = PATIENCE) -> Ended:
    """Train in a folder to the end; return the metrics, failure file and output found there."""
    folder.mkdir(parents=True, exist_ok=True)
    failure, metrics = folder / "failure.json", folder / "metrics.jsonl"
    command = torchrun(
        ranks, "-m", "megatron.flagscale.train_gpt", *MODEL, "--metrics-file", str(metrics), *argv
    )
    with (folder / "output").open("w+") as output:
        code = subprocess.run(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment(**{FAILURE_FILE: str(failure)}),
            timeout=timeout,
            check=False,
        ).returncode
    return Ended(
        code,
        (folder / "output").read_text(),
        json.loads(failure.read_text()) if failure.exists() else None,
        read_metrics(metrics),
    )


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until a condition holds; fail the test after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@contextmanager
def ended_at_last[Process: subprocess.Popen[bytes]](process: Process) -> Iterator[Process]:
    """End a training process with the test, whatever the outcome of the test."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return all lines of a metrics file; a line that is not JSON fails the test."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def saving(folder: Path) -> list[str]:
    """Return the arguments of a run that saves to a folder and resumes from it."""
    return [
        *("--train-iters", str(TRAIN_ITERS), "--save", str(folder), "--load", str(folder)),
        *("--save-interval", str(SAVE_INTERVAL)),
    ]


@dataclass(frozen=True)
class Base:
    """The uninterrupted run that others continue or repeat."""

    folder: Path
    ended: Ended


TP2_PP2 = ["--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2"]
