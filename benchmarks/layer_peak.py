"""Compare the memory and time of a training step with those of another commit, on the CPU.

`python -m benchmarks.layer_peak --against COMMIT` trains small models with both builds at once, each in a
process of its own, a step of each in turn. Prints the largest memory that a step adds (weights, gradients
and the optimizer's state exist before it), and the ratio of the CPU times of a step: the median over all
turns, and its 95 % interval by the order of the ratios.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
STEPS = 16
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
ROWS = (
    *itertools.product(("llama, fp32", "llama, bf16"), LENGTHS),
    *((model, max(LENGTHS)) for model in MODELS if model not in ("llama, fp32", "llama, bf16")),
)
# Large blocks come from the system and return to it, so that resident memory shows what is in use.
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Step:
    """What a training step needed: bytes at its peak, and CPU seconds."""

    peak: int
    cpu: float


def main(argv: list[str]) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layer_peak")
    parser.add_argument("--against", required=True, metavar="COMMIT")
    parser.add_argument("--model", choices=MODELS, action="append", help="default: all")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each build, to compare the time")
    asked = parser.parse_args(argv)
    print(
        "| model | tokens | before, peak MiB | now, peak MiB | ratio | CPU time per step, before / now |\n"
        "|---|---|---|---|---|---|"
    )
    with other_build(asked.against) as before:
        for model, length in ROWS:
            if model in (asked.model or MODELS):
                print(row(model, length, before, asked.steps), flush=True)
    return 0


@contextmanager
def other_build(commit: str) -> Iterator[Path]:
    """Yield a folder with the sources of the commit."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE, check=True)
        subprocess.run(["tar", "x", "-C", folder], input=archive.stdout, check=True)
        yield Path(folder)


def row(model: str, length: int, before: Path, count: int) -> str:
    """Return a row of the table."""
    turns = steps_in_turn((before, ROOT), model, length, 4, RETURNED)
    old, new = (max(step.peak for step in steps) / 2**20 for steps in zip(*turns, strict=True))
    count *= max(LENGTHS) // length  # short steps are disturbed more
    ratios = sorted(one.cpu / other.cpu for one, other in steps_in_turn((before, ROOT), model, length, count))
    # The number of ratios below the true median has a binomial distribution.
    aside = max(0, round((len(ratios) - 1.96 * len(ratios) ** 0.5) / 2) - 1)
    times = f"{median(ratios):.2f} ({ratios[aside]:.2f} to {ratios[-1 - aside]:.2f})"
    return f"| {model} | {length} | {old:.0f} | {new:.0f} | {old / new:.2f} | {times} |"


def steps_in_turn(
    builds: Sequence[Path], model: str, length: int, count: int, more: Mapping[str, str] | None = None
) -> list[tuple[Step, ...]]:
    """Train with all builds at once, a step of each in turn; return `count` steps of each,
    without the first."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        runs = [
            stack.enter_context(
                training(build, model, length, count + 1, Path(folder, str(number)), more or {})
            )
            for number, build in enumerate(builds)
        ]
        steps = []
        for turn in range(count + 1):
            order = [*enumerate(runs)][:: 1 if turn % 2 else -1]
            done = {number: next_step(run) for number, run in order}
            steps.append(tuple(done[number] for number in range(len(runs))))
        return steps[1:]


def next_step(run: subprocess.Popen[str]) -> Step:
    """Let the process compute one step."""
    assert run.stdin
    assert run.stdout
    print(file=run.stdin, flush=True)
    return Step(**json.loads(run.stdout.readline()))


@contextmanager
def training(
    build: Path, model: str, length: int, count: int, folder: Path, more: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """Start a training with a build; it computes a step for each line of its input."""
    folder.mkdir()
    paths = f"{build}{os.pathsep}{build / 'vllm'}"
    usual = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    lengths = ("--seq-length", str(length), "--max-position-embeddings", str(length))
    argv = (*shlex.split(MODELS[model]), *lengths, "--train-iters", str(count))
    with subprocess.Popen(
        # -P: the modules beside this file are not those of the build.
        [sys.executable, "-P", __file__, "train", *argv],
        cwd=folder,
        env={**os.environ, **usual, **more},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(folder / "output").open("w"),
        text=True,
    ) as process:
        try:
            yield process
        except ValueError as error:  # the line is empty: the process ended
            raise RuntimeError((folder / "output").read_text()[-4000:]) from error
        finally:
            process.kill()


def train(argv: list[str]) -> None:
    """Train on this process's only rank; each step waits for a line of input and answers with its figures."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the engine's output must not mix with our replies
    from megatron.flagscale.bootstrap import patch_engine

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", **address}
    patch_engine()
    from megatron.training import training

    from megatron.flagscale import program

    step = training.train_step

    def recorded(*positional: Any, **named: Any) -> Any:
        sys.stdin.readline()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        held, start = status("VmRSS"), time.process_time()
        outcome = step(*positional, **named)
        used = Step(status("VmHWM") - held, time.process_time() - start)
        print(json.dumps(asdict(used)), file=answers, flush=True)
        return outcome

    training.train_step = recorded
    program.train(argv)


def status(name: str) -> int:
    """Return a figure of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        train(sys.argv[2:])
    else:
        sys.exit(main(sys.argv[1:]))
