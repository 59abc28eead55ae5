"""Compare the memory and time of a training step with those of another commit, on the CPU.

`python -m benchmarks.layer_peak --against COMMIT` trains small models with both builds in turn, in a process
of its own each time. Prints how much memory a step adds at its peak (weights, gradients and the optimizer's
state exist before it), and the ratio of the CPU times of a step, with the smallest and largest of all rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
ROUNDS = 3
STEPS = 5
USUAL = """
    --mock-data --tokenizer-type NullTokenizer --vocab-size 255 --position-embedding-type rope
    --normalization RMSNorm --swiglu --disable-bias-linear --untie-embeddings-and-output-weights
    --attention-dropout 0 --hidden-dropout 0 --micro-batch-size 1 --global-batch-size 1 --lr 1e-3
    --lr-decay-style constant --log-interval 1 --eval-iters 0 --num-layers 4 --hidden-size 256
    --num-attention-heads 4 --group-query-attention --num-query-groups 2 --ffn-hidden-size 896
"""
EXPERTS = """
    --num-experts 4 --moe-router-topk 2 --moe-ffn-hidden-size 448 --moe-grouped-gemm
    --moe-router-load-balancing-type none
"""
MODELS = {
    "llama, fp32": USUAL,
    "llama, bf16": f"{USUAL} --bf16",
    "llama, bf16, recompute selective": f"{USUAL} --bf16 --recompute-granularity selective",
    "llama, bf16, recompute full": f"{USUAL} --bf16 --recompute-granularity full --recompute-method uniform "
    "--recompute-num-layers 1",
    "grouped experts, bf16": f"{USUAL} {EXPERTS} --bf16",
    "gpt, fp32": USUAL.replace("--normalization RMSNorm --swiglu --disable-bias-linear", ""),
}
LENGTHS = (256, 2048)
# Large blocks come from the system and return to it, so that resident memory shows what is in use.
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def main(argv: list[str]) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layer_peak")
    parser.add_argument("--against", required=True, metavar="COMMIT")
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args(argv)
    print(
        "| model | tokens | before, peak MiB | now, peak MiB | ratio | CPU time per step, before / now |\n"
        "|---|---|---|---|---|---|"
    )
    with other_build(asked.against) as before:
        for model in asked.model or MODELS:
            for length in LENGTHS:
                print(row(model, length, before, asked.rounds), flush=True)
    return 0


@contextmanager
def other_build(commit: str) -> Iterator[Path]:
    """Yield a folder with the sources of the commit."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE, check=True)
        subprocess.run(["tar", "x", "-C", folder], input=archive.stdout, check=True)
        yield Path(folder)


def row(model: str, length: int, before: Path, rounds: int) -> str:
    """Return a row of the table."""
    peaks, speedups = {}, []
    for build in (before, ROOT):
        peaks[build] = max(step["peak"] for step in steps_of(build, model, length, RETURNED)[1:])
    for turn in range(rounds):
        order = (before, ROOT) if turn % 2 else (ROOT, before)
        seconds = {build: min(step["cpu"] for step in steps_of(build, model, length)[1:]) for build in order}
        speedups.append(seconds[before] / seconds[ROOT])
    old, new = (peaks[build] / 2**20 for build in (before, ROOT))
    times = f"{median(speedups):.2f} ({min(speedups):.2f} to {max(speedups):.2f})"
    return f"| {model} | {length} | {old:.0f} | {new:.0f} | {old / new:.2f} | {times} |"


def steps_of(
    build: Path, model: str, length: int, more: dict[str, str] | None = None
) -> list[dict[str, float]]:
    """Train with a build in a process of its own; return the peak in bytes and CPU seconds of each step."""
    long = ("--seq-length", str(length), "--max-position-embeddings", str(length))
    count = STEPS if length > 1000 or more else 6 * STEPS
    paths = f"{build}{os.pathsep}{build / 'vllm'}"
    usual = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        # -P: the modules beside this file are not those of the build.
        command = [sys.executable, "-P", __file__, "steps", f"{folder}/steps"]
        argv = [*shlex.split(MODELS[model]), *long, "--train-iters", str(count)]
        done = subprocess.run(
            [*command, *argv],
            cwd=folder,
            env={**os.environ, **usual, **(more or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stdout[-4000:])
        return [json.loads(line) for line in Path(folder, "steps").read_text().splitlines()]


def train_and_record(record: Path, argv: list[str]) -> None:
    """Train on this process's only rank, and write a line per step."""
    import socket

    from megatron.flagscale.bootstrap import patch_engine

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    patch_engine()
    from megatron.training import training

    from megatron.flagscale import program

    step = training.train_step

    def recorded(*positional: Any, **named: Any) -> Any:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        held, start = status("VmRSS"), sum(os.times()[:2])
        outcome = step(*positional, **named)
        figures = {"peak": status("VmHWM") - held, "cpu": sum(os.times()[:2]) - start}
        with record.open("a") as lines:
            print(json.dumps(figures), file=lines)
        return outcome

    training.train_step = recorded
    program.train(argv)


def status(name: str) -> int:
    """Return a figure of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["steps"]:
        train_and_record(Path(sys.argv[2]), sys.argv[3:])
    else:
        sys.exit(main(sys.argv[1:]))
