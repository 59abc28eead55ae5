"""What it costs to train on unequal chips together, and what it costs those who do not: `make bench-hetero`.

Two kinds of chips are made of two processor cores. The fast one is core 0 as it is; on core 1 two ranks may
use no vector instruction newer than SSE2, which is about half the speed. First each kind trains the model
alone, both at the same time. Then both train it as one pipeline of unequal meshes, its layers shared out by
the speeds of a trial. Printed: the throughput together over the sum of both alone (HETHUB's measure), and
where each stage's time went.

Then an ordinary pipeline of two ranks, a core each: as it is, with the code of meshes taken away, and as two
equal meshes; and both cores alone, whose sum even an ordinary pipeline does not reach.

    python -m benchmarks.hetero [together] [homogeneous] [--rounds 2] [--layers 24] [--hidden 256] [--steps 3]
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from flagscale.parallel.meshes import Mesh, Meshes
from tests.worker.harness import ROOT, environment, read_metrics

MICRO_BATCHES, MICRO_BATCH = 64, 2
MODEL = f"""
    --mock-data --tokenizer-type NullTokenizer --vocab-size 255 --make-vocab-size-divisible-by 32
    --seq-length 64 --max-position-embeddings 64 --num-attention-heads 4 --swiglu
    --attention-dropout 0 --hidden-dropout 0 --normalization RMSNorm --position-embedding-type rope
    --disable-bias-linear --untie-embeddings-and-output-weights --global-batch-size
    {MICRO_BATCHES * MICRO_BATCH} --lr 1e-3 --lr-decay-style constant --log-interval 1 --eval-iters 0
    --num-workers 0
"""
WARM_UP = 1
"""The first steps of a run, which are not counted."""


@dataclass(frozen=True)
class Size:
    """What every job of a measurement trains, and how long."""

    layers: int
    hidden: int
    steps: int

    def argv(self, micro_batch: int) -> list[str]:
        return shlex.split(
            f"--num-layers {self.layers} --hidden-size {self.hidden} --train-iters {self.steps + WARM_UP}"
            f" --micro-batch-size {micro_batch}"
        )


@dataclass(frozen=True)
class Chip:
    """A mesh on a kind of chip: its core, and what its ranks may use of it."""

    mesh: Mesh
    core: int
    environment: Mapping[str, str] = field(default_factory=dict)


FAST = Chip(Mesh(), 0)
SLOW = Chip(Mesh(dp=2), 1, {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default"})
EQUAL = (Chip(Mesh(), 0), Chip(Mesh(), 1))


@dataclass(frozen=True)
class Job:
    """A training over some chips, each with a launcher of its own, as hosts have."""

    name: str
    chips: Sequence[Chip]
    argv: Sequence[str]
    worker: str = "benchmarks.hetero --worker"


@dataclass(frozen=True)
class Outcome:
    """The seconds of a median step, and of each rank: what of them it computed, posted messages, waited."""

    step: float
    ranks: list[dict[str, float]]


def train(folder: Path, jobs: Sequence[Job]) -> list[Outcome]:
    """Run jobs at the same time, each in a folder of its own."""
    processes = [process for job in jobs for process in _start(folder / job.name, job)]
    codes = [process.wait() for process in processes]
    if any(codes):
        outputs = [file.read_text()[-3000:] for file in sorted(folder.glob("*/output_*"))]
        raise SystemExit("\n\n".join(["a job failed:", *outputs]))
    return [_outcome(folder / job.name) for job in jobs]


def _start(folder: Path, job: Job) -> list[subprocess.Popen[bytes]]:
    folder.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank, chip in enumerate(job.chips):
        command = shlex.split(f"""
            taskset -c {chip.core} {sys.executable} -m megatron.flagscale.torchrun
            --nnodes {len(job.chips)} --node-rank {rank} --nproc-per-node {chip.mesh.ranks}
            --master-addr 127.0.0.1 --master-port {port} -m {job.worker} {folder}
        """)
        more = ["--metrics-file", str(folder / "metrics.jsonl")]
        with (folder / f"output_{rank}").open("w") as output:
            processes.append(
                subprocess.Popen(
                    [*command, *shlex.split(MODEL), *job.argv, *more],
                    cwd=ROOT,
                    env=environment(**chip.environment),
                    stdout=output,
                    stderr=output,
                )
            )
    return processes


def _outcome(folder: Path) -> Outcome:
    steps = [line["iteration_ms"] / 1000 for line in read_metrics(folder / "metrics.jsonl")][WARM_UP:]
    notes = [json.loads(file.read_text())[WARM_UP:] for file in sorted(folder.glob("rank_*.json"))]
    ranks = [{name: statistics.median(one[name] for one in note) for name in note[0]} for note in notes]
    return Outcome(statistics.median(steps), ranks)


def alone(chip: Chip, size: Size) -> Job:
    """A kind of chip trains the model by itself."""
    return Job(f"alone_{chip.core}", [chip], size.argv(MICRO_BATCH // chip.mesh.dp))


def together(
    chips: Sequence[Chip], size: Size, split: Sequence[int], extra: int = Meshes.extra_micro_batches
) -> Job:
    """All chips train it as one pipeline."""
    meshes = tuple(replace(chip.mesh, layers=((layers,),)) for chip, layers in zip(chips, split, strict=True))
    layout = ["--hetero-layout", Meshes(meshes, extra_micro_batches=extra).to_json()]
    return Job("together", chips, [*size.argv(MICRO_BATCH), *layout])


def better_split(
    split: tuple[int, int], busy: Sequence[float], per_layer: Sequence[float]
) -> tuple[int, int]:
    """Return the split with the shortest longer stage, from the time that both stages took in a trial."""

    def longest(moved: int) -> float:
        return max(busy[0] + moved * per_layer[0], busy[1] - moved * per_layer[1])

    moved = min(range(1 - split[0], split[1]), key=longest)
    return split[0] + moved, split[1] - moved


def measure_together(folder: Path, rounds: int, size: Size) -> None:
    """Print the throughput of both kinds of chips together over the sum of each alone."""
    chips = (FAST, SLOW)
    split, ratios = (0, 0), []
    for number in range(rounds):
        parts = train(folder / f"alone_{number}", [alone(chip, size) for chip in chips])
        per_layer = [part.step / size.layers for part in parts]
        if not number:
            first = round(size.layers * per_layer[1] / sum(per_layer))
            split = (first, size.layers - first)
            (trial,) = train(folder / "trial", [together(chips, replace(size, steps=1), split)])
            split = better_split(split, [trial.ranks[0]["compute"], trial.ranks[1]["compute"]], per_layer)
        (both,) = train(folder / f"together_{number}", [together(chips, size, split)])
        ratios.append((1 / both.step) / sum(1 / part.step for part in parts))
        seconds = " and ".join(f"{part.step:.2f} s" for part in parts)
        print(f"a step alone {seconds}, together {both.step:.2f} s: {ratios[-1]:.4f} of the sum")
        for rank, spent in enumerate(both.ranks):
            shares = ", ".join(
                f"{name} {spent[name] / both.step:.1%}" for name in ("compute", "post", "wait")
            )
            print(f"  rank {rank}: {shares}", flush=True)
    print(
        f"layers {split[0]} + {split[1]}, {MICRO_BATCHES} micro-batches; bubble {1 / (MICRO_BATCHES + 1):.1%}"
    )
    print(f"together / sum of both alone: {statistics.median(ratios):.3f} (median of {rounds})")


def measure_homogeneous(folder: Path, rounds: int, size: Size) -> None:
    """Print the step time of an ordinary pipeline, of one without the code of meshes, and of equal meshes.

    And the throughput of each over the sum of both cores alone.
    """
    ordinary = ["--pipeline-model-parallel-size", "2", *size.argv(MICRO_BATCH)]
    jobs = {
        "ordinary": Job("ordinary", EQUAL, ordinary),
        "without the code of meshes": Job(
            "without", EQUAL, ordinary, "benchmarks.hetero --worker-without-meshes"
        ),
        "as two equal meshes": together(EQUAL, size, (size.layers // 2, size.layers // 2)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    sums: list[float] = []
    for number in range(rounds):
        parts = train(folder / f"alone_{number}", [alone(chip, size) for chip in EQUAL])
        sums.append(sum(1 / part.step for part in parts))
        for name in sorted(jobs, reverse=bool(number % 2)):
            seconds[name] += [train(folder / f"round_{number}", [jobs[name]])[0].step]
    for name, found in seconds.items():
        ratios = [one / base for one, base in zip(found, seconds["ordinary"], strict=True)]
        of_sum = [1 / (one * both) for one, both in zip(found, sums, strict=True)]
        print(
            f"{name:28} {statistics.median(found):.3f} s a step, x {statistics.median(ratios):.3f},"
            f" {statistics.median(of_sum):.3f} of the sum of both alone"
        )


def work(folder: Path, argv: list[str]) -> None:
    """Train in this process; note what of every step went into posting messages and into waiting."""
    from megatron.flagscale.platform import patch_engine

    patch_engine()
    from megatron.training import training

    from megatron.flagscale.train_gpt import train as train_gpt

    spent = {"post": 0.0, "wait": 0.0}
    notes: list[dict[str, float]] = []

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*positional: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            outcome = function(*positional, **named)
            spent[name] += time.perf_counter() - begun
            return outcome

        return call

    step = training.train_step

    def train_step(*positional: Any, **named: Any) -> Any:
        spent.update(dict.fromkeys(spent, 0.0))
        begun = time.perf_counter()
        outcome = step(*positional, **named)
        notes.append({**spent, "compute": time.perf_counter() - begun - sum(spent.values())})
        return outcome

    training.train_step = train_step
    if "--hetero-layout" in argv:
        from megatron.flagscale.hetero.channel import Arrival, Channel

        for owner, method, name in (
            (Channel, "send", "post"),
            (Channel, "expect", "post"),
            (Arrival, "wait", "wait"),
        ):
            setattr(owner, method, timed(name, getattr(owner, method)))
    train_gpt(argv)
    (folder / f"rank_{os.environ['RANK']}.json").write_text(json.dumps(notes))


def _take_meshes_away() -> None:
    """Make imports of the code of meshes errors, but for what every job asks of it."""
    package = "megatron.flagscale.hetero"
    arguments, patches = (ModuleType(f"{package}.{name}") for name in ("arguments", "patches"))
    arguments.own_part = lambda argv: None  # type: ignore[attr-defined]
    patches.PATCHES = ()  # type: ignore[attr-defined]
    sys.modules |= {module.__name__: module for module in (arguments, patches)}
    for name in ("channel", "finalize", "groups", "p2p"):
        sys.modules[f"{package}.{name}"] = None  # type: ignore[assignment]


def main() -> None:
    """Measure what is asked for, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    measures = {"together": measure_together, "homogeneous": measure_homogeneous}
    parser.add_argument("what", nargs="*", choices=[[], *measures], help="default: both")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3, help="those that count")
    asked = parser.parse_args()
    size = Size(asked.layers, asked.hidden, asked.steps)
    for name in asked.what or measures:
        with tempfile.TemporaryDirectory() as folder:
            measures[name](Path(folder), asked.rounds, size)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker-without-meshes"]:
        _take_meshes_away()
    if sys.argv[1:2] and sys.argv[1].startswith("--worker"):
        work(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
