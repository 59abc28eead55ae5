"""What it costs to train on unequal chips together, and what it costs those who do not: `make bench-hetero`.

Two kinds of chips are made of two processor cores. The fast one is core 0 as it is; on core 1 two ranks may
use no vector instruction newer than SSE2. Each kind trains the model alone, both at the same time; both train
it together, as one pipeline of unequal meshes, its layers shared out by the speeds of a trial. Printed: the
throughput together over the sum of both alone (HETHUB's measure), and where each stage's time went.

Then an ordinary pipeline of two ranks, a core each: as it is, with the code of meshes taken away, and as two
equal meshes; and both cores alone, whose sum no pipeline reaches: it has to fill and to empty.

A machine's speed changes within minutes, so all jobs of a comparison live at the same time and take turns,
step by step.

    python -m benchmarks.hetero [together] [homogeneous] [--layers 26] [--hidden 256] [--steps 4]
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
from tests.worker.harness import ROOT, environment

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
_LOOK = 0.005


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

    @property
    def ranks(self) -> int:
        return sum(chip.mesh.ranks for chip in self.chips)


@dataclass(frozen=True)
class Outcome:
    """The seconds of each step, and of each rank: what of a step it computed, posted messages, waited."""

    steps: tuple[float, ...]
    ranks: list[dict[str, float]]


def in_turns(folder: Path, turns: Sequence[Sequence[Job]], size: Size) -> list[Outcome]:
    """Have jobs train by turns, a step each; the jobs of one turn at the same time. Each has a folder."""
    jobs = [job for turn in turns for job in turn]
    processes = [process for job in jobs for process in _start(folder / job.name, job)]
    for step in range(WARM_UP + size.steps):
        for turn in turns:
            for job in turn:
                (folder / job.name / f"go_{step}").touch()
            awaited = {folder / job.name / f"done_{step}_{rank}" for job in turn for rank in range(job.ranks)}
            while awaited := {path for path in awaited if not path.exists()}:
                if any(process.poll() for process in processes):
                    _give_up(folder, processes)
                time.sleep(_LOOK)
    for process in processes:
        if process.wait():
            _give_up(folder, processes)
    return [_outcome(folder / job.name) for job in jobs]


def _give_up(folder: Path, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
        process.wait()
    outputs = [file.read_text()[-3000:] for file in sorted(folder.glob("*/output_*"))]
    raise SystemExit("\n\n".join(["a job failed:", *outputs]))


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
        with (folder / f"output_{rank}").open("w") as output:
            processes.append(
                subprocess.Popen(
                    [*command, *shlex.split(MODEL), *job.argv],
                    cwd=ROOT,
                    env=environment(**chip.environment),
                    stdout=output,
                    stderr=output,
                )
            )
    return processes


def _outcome(folder: Path) -> Outcome:
    notes = [json.loads(file.read_text())[WARM_UP:] for file in sorted(folder.glob("rank_*.json"))]
    steps = tuple(max(one["step"] for one in step) for step in zip(*notes, strict=True))
    ranks = [{name: statistics.median(one[name] for one in note) for name in note[0]} for note in notes]
    return Outcome(steps, ranks)


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


def measure_together(folder: Path, size: Size) -> None:
    """Print the throughput of both kinds of chips together over the sum of each alone."""
    chips = (FAST, SLOW)
    each = [alone(chip, size) for chip in chips]
    split = _split(folder / "trial", chips, replace(size, steps=1))
    *parts, both = in_turns(folder / "measured", [each, [together(chips, size, split)]], size)
    ratios = []
    for fast, slow, joined in zip(*(one.steps for one in (*parts, both)), strict=True):
        ratios.append((1 / joined) / (1 / fast + 1 / slow))
        print(f"a step alone {fast:.2f} s and {slow:.2f} s, together {joined:.2f} s: {ratios[-1]:.3f}")
    for rank, spent in enumerate(both.ranks):
        shares = [f"{name} {spent[name] / spent['step']:.1%}" for name in ("compute", "post", "wait")]
        print(f"rank {rank}: {', '.join(shares)}")
    bubble = 1 / (MICRO_BATCHES + 1)
    print(f"layers {split[0]} + {split[1]}, {MICRO_BATCHES} micro-batches; bubble {bubble:.1%}")
    print(f"together / sum of both alone: {statistics.median(ratios):.3f} (median of {len(ratios)})")


def _split(folder: Path, chips: tuple[Chip, Chip], size: Size) -> tuple[int, int]:
    """Share the layers out by the speeds of the chips alone, then by what the stages take."""
    parts = in_turns(folder / "alone", [[alone(chip, size) for chip in chips]], size)
    per_layer = [statistics.median(part.steps) / size.layers for part in parts]
    first = round(size.layers * per_layer[1] / sum(per_layer))
    split = (first, size.layers - first)
    (trial,) = in_turns(folder / "together", [[together(chips, size, split)]], size)
    return better_split(split, [trial.ranks[0]["compute"], trial.ranks[1]["compute"]], per_layer)


def measure_homogeneous(folder: Path, size: Size) -> None:
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
    turns = [[alone(chip, size) for chip in EQUAL], *([job] for job in jobs.values())]
    one, other, *found = in_turns(folder, turns, size)
    sums = [1 / a + 1 / b for a, b in zip(one.steps, other.steps, strict=True)]
    for name, outcome in zip(jobs, found, strict=True):
        steps = outcome.steps
        ratios = [mine / base for mine, base in zip(steps, found[0].steps, strict=True)]
        of_sum = [1 / (mine * both) for mine, both in zip(steps, sums, strict=True)]
        print(
            f"{name:28} {statistics.median(steps):.3f} s a step, x {statistics.median(ratios):.3f},"
            f" {statistics.median(of_sum):.3f} of the sum of both alone"
        )


def work(folder: Path, argv: list[str]) -> None:
    """Train in this process, each step when it is this job's turn; note where its time went."""
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
        while not (folder / f"go_{len(notes)}").exists():
            time.sleep(_LOOK)
        spent.update(dict.fromkeys(spent, 0.0))
        begun = time.perf_counter()
        outcome = step(*positional, **named)
        took = time.perf_counter() - begun
        (folder / f"done_{len(notes)}_{os.environ['RANK']}").touch()
        notes.append({**spent, "compute": took - sum(spent.values()), "step": took})
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
    parser.add_argument("--layers", type=int, default=26)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4, help="those that count")
    asked = parser.parse_args()
    size = Size(asked.layers, asked.hidden, asked.steps)
    for name in asked.what or measures:
        with tempfile.TemporaryDirectory() as folder:
            measures[name](Path(folder), size)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker-without-meshes"]:
        _take_meshes_away()
    if sys.argv[1:2] and sys.argv[1].startswith("--worker"):
        work(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
