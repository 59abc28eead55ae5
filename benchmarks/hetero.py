"""Measure the cost of training on unequal chips, and of its code in ordinary jobs: `make bench-hetero`.

Two kinds of chips are made of two CPU cores. The fast one is core 0 as it is; on core 1, two ranks may not
use vector instructions newer than SSE2. Each kind trains the model alone, both at the same time; then both
train it together, as one pipeline of unequal meshes with layers split by the speeds of a trial. Prints the
throughput together over the sum of both alone (HETHUB's measure), and where each stage spent its time.

Then it measures an ordinary pipeline of two ranks on one core each: as it is, without the code of meshes, and
as two equal meshes; and both cores alone, whose sum no pipeline reaches, because it has to fill and drain.

All jobs of a comparison run at the same time and share the machine in time slices (`benchmarks.turns`).

    python -m benchmarks.hetero [together] [homogeneous] [--layers 40] [--micro-batches 128] [--steps 2]
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from benchmarks.turns import Chip, Job, Outcome, in_turns, work
from flagscale.checks.hetero.layout import HeteroLayout, Mesh

MICRO_BATCH = 2
MODEL = """
    --mock-data --tokenizer-type NullTokenizer --vocab-size 255 --make-vocab-size-divisible-by 32
    --seq-length 64 --max-position-embeddings 64 --num-attention-heads 4 --swiglu
    --attention-dropout 0 --hidden-dropout 0 --normalization RMSNorm --position-embedding-type rope
    --disable-bias-linear --untie-embeddings-and-output-weights --lr 1e-3 --lr-decay-style constant
    --log-interval 1 --eval-iters 0 --num-workers 0 --train-iters 1000
"""


@dataclass(frozen=True)
class Size:
    """The model that every job of a measurement trains, and the micro-batches per step."""

    layers: int
    hidden: int
    micro_batches: int

    def argv(self, micro_batch: int) -> list[str]:
        return shlex.split(
            f"{MODEL} --num-layers {self.layers} --hidden-size {self.hidden} --micro-batch-size {micro_batch}"
            f" --global-batch-size {self.micro_batches * MICRO_BATCH}"
        )


FAST = Chip(Mesh(), 0)
SLOW = Chip(Mesh(dp=2), 1, {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default"})
EQUAL = (Chip(Mesh(), 0), Chip(Mesh(), 1))


def alone(chip: Chip, size: Size) -> Job:
    """Return the job in which one kind of chip trains the model alone."""
    return Job(f"alone_{chip.core}", [chip], size.argv(MICRO_BATCH // chip.mesh.dp))


def together(
    chips: Sequence[Chip], size: Size, split: Sequence[int], extra: int = HeteroLayout.extra_micro_batches
) -> Job:
    """Return the job in which all chips train the model as one pipeline."""
    meshes = tuple(replace(chip.mesh, layers=((layers,),)) for chip, layers in zip(chips, split, strict=True))
    layout = ["--hetero-layout", HeteroLayout(meshes, extra_micro_batches=extra).to_json()]
    return Job("together", chips, [*size.argv(MICRO_BATCH), *layout])


def better_split(
    split: tuple[int, int], busy: Sequence[float], per_layer: Sequence[float]
) -> tuple[int, int]:
    """Return the split whose slower stage is fastest, from the times of both stages in a trial."""

    def longest(moved: int) -> float:
        return max(busy[0] + moved * per_layer[0], busy[1] - moved * per_layer[1])

    moved = min(range(1 - split[0], split[1]), key=longest)
    return split[0] + moved, split[1] - moved


def measure_together(folder: Path, size: Size, steps: int) -> None:
    """Print the throughput of both kinds of chips together over the sum of each alone."""
    chips = (FAST, SLOW)
    each = [alone(chip, size) for chip in chips]
    split = _split(folder / "trial", chips, size)
    fast, slow, both = in_turns(folder / "measured", [each, [together(chips, size, split)]], steps)
    for name, outcome in (("fast chip alone", fast), ("slow chip alone", slow), ("together", both)):
        print(_reported(name, outcome))
    for rank, spent in enumerate(both.ranks):
        shares = [f"{name} {spent[name] / spent['step']:.1%}" for name in ("compute", "post", "wait")]
        print(f"rank {rank}: {', '.join(shares)}")
    rates = [layers * _mean(chip) / size.layers for layers, chip in zip(split, (fast, slow), strict=True)]
    parts = 1 / _mean(fast) + 1 / _mean(slow)
    print(f"layers {split[0]} + {split[1]}: whole layers limit the ratio to {1 / (parts * max(rates)):.3f},")
    print(f"{size.micro_batches} micro-batches limit it to {1 - 1 / (size.micro_batches + 1):.3f} of that")
    print(f"together / sum of both alone: {1 / (parts * _mean(both)):.3f}")


def _mean(outcome: Outcome) -> float:
    return statistics.mean(outcome.steps)


def _reported(name: str, outcome: Outcome) -> str:
    error = statistics.pstdev(outcome.steps) / len(outcome.steps) ** 0.5
    return f"{name:28} {_mean(outcome):.3f} s per step (± {error:.3f}, {len(outcome.steps)} steps)"


def _split(folder: Path, chips: tuple[Chip, Chip], size: Size) -> tuple[int, int]:
    """Split the layers by the speeds of the chips alone, then by the times of the stages.

    A quarter of the micro-batches is enough for this.
    """
    size = replace(size, micro_batches=size.micro_batches // 4)
    parts = in_turns(folder / "alone", [[alone(chip, size) for chip in chips]], 1)
    per_layer = [_mean(part) / size.layers for part in parts]
    first = round(size.layers * per_layer[1] / sum(per_layer))
    split = (first, size.layers - first)
    (trial,) = in_turns(folder / "together", [[together(chips, size, split)]], 1)
    return better_split(split, [trial.ranks[0]["compute"], trial.ranks[1]["compute"]], per_layer)


def measure_homogeneous(folder: Path, size: Size, steps: int) -> None:
    """Print the step time of an ordinary pipeline, of one without the code of meshes, and of equal meshes.

    Also print the throughput of each over the sum of both cores alone.
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
    one, other, *found = in_turns(folder, turns, steps)
    parts = 1 / _mean(one) + 1 / _mean(other)
    for name, outcome in zip(jobs, found, strict=True):
        ratio, share = _mean(outcome) / _mean(found[0]), 1 / (parts * _mean(outcome))
        print(f"{_reported(name, outcome)}, x {ratio:.3f}, {share:.3f} of the sum of both alone")


def _take_meshes_away() -> None:
    """Make imports of the code of meshes fail, except for what every job needs of it."""
    package = "megatron.flagscale.hetero"
    arguments, patches = (ModuleType(f"{package}.{name}") for name in ("arguments", "patches"))
    arguments.own_part = lambda argv: None  # type: ignore[attr-defined]
    patches.PATCHES = ()  # type: ignore[attr-defined]
    sys.modules |= {module.__name__: module for module in (arguments, patches)}
    for name in ("finalize", "groups", "lane", "p2p"):
        sys.modules[f"{package}.{name}"] = None  # type: ignore[assignment]


def main() -> None:
    """Run the requested measurements (default: all)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    measures = {"together": measure_together, "homogeneous": measure_homogeneous}
    parser.add_argument(
        "what", nargs="*", choices=[[], *measures], help="measurements to run (default: both)"
    )
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--micro-batches", type=int, default=128)
    parser.add_argument(
        "--steps", type=int, default=2, help="measured steps of the slowest job (default: %(default)s)"
    )
    asked = parser.parse_args()
    size = Size(asked.layers, asked.hidden, asked.micro_batches)
    for name in asked.what or measures:
        with tempfile.TemporaryDirectory() as folder:
            measures[name](Path(folder), size, asked.steps)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker-without-meshes"]:
        _take_meshes_away()
    if sys.argv[1:2] and sys.argv[1].startswith("--worker"):
        work(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        main()
