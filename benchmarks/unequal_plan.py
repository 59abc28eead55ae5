"""Compare a plan for two unequal chips with its alternatives: `python -m benchmarks.unequal_plan`.

The chips are two CPU cores. The *whole* one is core 0; on core 1, the *half* one, a process that only
computes takes half of the time (each core has one rank of a job, so the shares are equal).
tools/profile_chip.py measures the whole one; the figures of the half one are those times its measured share,
and the search plans for both. Then the plan, every layout that treats the cores as equal, and each core alone
train the same batch in turns of some seconds (`benchmarks.turns`), with the micro-batches that are estimated
to be the fastest. Prints the seconds of a step, and how many times longer than the plan each alternative
takes, with 95 % intervals. The machine has to be idle otherwise: others would take of both cores alike.

    python -m benchmarks.unequal_plan [ALTERNATIVE ...] [--layers 12] [--hidden 512] [--batch 16] [--steps 12]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measured_arguments import with_defaults
from benchmarks.turns import Chip as Core
from benchmarks.turns import Job, in_turns
from flagscale.checks.degrees import violations
from flagscale.checks.hetero.layout import HeteroLayout, Mesh
from flagscale.frozen import replace
from flagscale.planner.chips import Chip, chip_of
from flagscale.planner.reading import training_of
from flagscale.planner.search.cluster import Cluster, Pool
from flagscale.planner.search.plans import best_plans
from flagscale.planner.time.step_time import step_time
from flagscale.planner.training import Training
from flagscale_testing.ranks.training import ROOT, environment

WHOLE, HALF = "whole", "half"
CORES = {WHOLE: 0, HALF: 1}
_RESAMPLED = 2000

HOMOGENEOUS: Mapping[str, Mapping[str, Any]] = {
    "data parallel": {},
    "tensor parallel": {"tensor_model_parallel_size": 2},
    "tensor and sequence parallel": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pipeline": {"pipeline_model_parallel_size": 2},
    "interleaved pipeline": {
        "pipeline_model_parallel_size": 2,
        "num_virtual_stages_per_pipeline_rank": 2,
    },
    "context parallel": {"context_parallel_size": 2},
}
"""Every layout of two ranks that treats them as equal."""


@dataclass(frozen=True)
class Candidate:
    """A way to train, with its estimate."""

    job: Job
    estimated_s: float
    about: str


def model(layers: int, hidden: int, batch: int) -> dict[str, Any]:
    """Return the arguments (by dest) that all jobs have."""
    return {
        "num_layers": layers,
        "hidden_size": hidden,
        "ffn_hidden_size": 4 * hidden,
        "num_attention_heads": 8,
        "seq_length": 256,
        "max_position_embeddings": 256,
        "vocab_size": 2047,
        "make_vocab_size_divisible_by": 64,
        "tokenizer_type": "NullTokenizer",
        "mock_data": True,
        "transformer_impl": "torch",
        "swiglu": True,
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
        "add_bias_linear": False,
        "untie_embeddings_and_output_weights": True,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "bf16": True,
        "global_batch_size": batch,
        "lr": 1e-4,
        "lr_decay_style": "constant",
        "log_interval": 1,
        "eval_iters": 0,
        "num_workers": 0,
        "train_iters": 100_000,
    }


_FLAGS = {
    "add_bias_linear": "--disable-bias-linear",
    "untie_embeddings_and_output_weights": "--untie-embeddings-and-output-weights",
}


def argv(values: Mapping[str, Any]) -> list[str]:
    """Return arguments (by dest) as words."""
    words: list[str] = []
    for dest, value in values.items():
        flag = _FLAGS.get(dest, f"--{dest.replace('_', '-')}")
        words += [flag] if isinstance(value, bool) else [flag, str(value)]
    return words


@contextmanager
def shared_core(core: int) -> Iterator[None]:
    """Let a process that only computes take half of a core."""
    code = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def share_of_core(core: int, seconds: float = 4.0) -> float:
    """Return the share of a core that one more process has, by its CPU seconds."""
    code = (
        f"import os, time\nos.sched_setaffinity(0, {{{core}}})\nend = time.monotonic() + {seconds}\n"
        "while time.monotonic() < end: pass\nprint(time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return min(float(done.stdout) / seconds, 1.0)


def profiled(folder: Path) -> dict[str, Chip]:
    """Measure the whole core, the share of the half one, and the collectives between them."""
    file = folder / "chips.json"
    _run(file, WHOLE, 1, ("gemm/bfloat16", "attention/bfloat16", "hbm_gb_s", "launch_s"), CORES[WHOLE])
    _run(file, "link", 2, ("collectives",), None)
    entries = json.loads(file.read_text())["chips"]
    whole, link = entries[WHOLE]["measured"], entries["link"]
    whole["collectives"] = link["measured"]["collectives"]
    gbit_s = chip_of("link", link).inside.bytes_s * 8 / 1e9
    links = {"intra_node": {"world": 2}, "inter_node": {"gbit_s_per_card": gbit_s}}
    share = share_of_core(CORES[HALF]) / share_of_core(CORES[WHOLE])
    print(f"the half core has {share:.2f} of the whole one", flush=True)
    # A process that waits for its turn sees whole time slices: short calls do not show the share.
    half = {
        **whole,
        "hbm_gb_s": whole["hbm_gb_s"] * share,
        **{key: _slower(whole[key], share) for key in ("gemm", "attention")},
    }
    found = {WHOLE: {**links, "measured": whole}, HALF: {**links, "measured": half}}
    return {name: chip_of(name, entry) for name, entry in found.items()}


def _slower(tables: Mapping[str, Sequence[Sequence[float]]], share: float) -> dict[str, Any]:
    """Return rows whose seconds, behind three sizes, are those of a share of the chip."""
    return {
        precision: [[*row[:3], *(seconds / share for seconds in row[3:])] for row in rows]
        for precision, rows in tables.items()
    }


def _run(file: Path, name: str, ranks: int, parts: Sequence[str], core: int | None) -> None:
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    words = [str(file), "--name", name, "--ranks", str(ranks), "--platform", "cpu", "--quick"]
    only = [f"--only={part}" for part in parts]
    tool = [sys.executable, str(ROOT / "tools/profile_chip.py")]
    subprocess.run([*pinned, *tool, *words, *only], env=environment(), stdout=sys.stderr, check=True)


def planned(given: Mapping[str, Any], chips: Mapping[str, Chip]) -> tuple[Candidate, tuple[str, ...]]:
    """Return the plan of the search, and what it considered."""
    values = with_defaults({**given, "micro_batch_size": 1})
    template = training_of(values, 1, [chips[WHOLE]], [1])
    pools = tuple(Pool(name, chips[name], 1, 1) for name in CORES)
    found = best_plans(template, Cluster(pools), values)
    best = found.best.training
    meshes = best.layout.meshes
    # On the hosts of a job types would be checked; here every rank is on a core of its own.
    untyped = tuple(replace(mesh, type="") for mesh in meshes)
    extra = {"micro_batch_size": best.blocks[0].micro_batch}
    layout = HeteroLayout(untyped, extra_micro_batches=best.layout.extra_micro_batches)
    own = ["--hetero-layout", layout.to_json()] if len(meshes) > 1 else []
    cores = [Core(mesh, CORES[mesh.type]) for mesh in meshes]
    job = Job("plan", cores, [*argv({**given, **extra}), *own])
    layers = " > ".join(f"{mesh.type} {mesh.layers}" for mesh in meshes)
    about = f"{layers}, micro-batch {extra['micro_batch_size']}"
    return Candidate(job, found.best.seconds, about), found.considered


def alternatives(
    given: Mapping[str, Any], chips: Mapping[str, Chip], names: Sequence[str]
) -> Iterator[Candidate]:
    """Yield cores alone and homogeneous layouts, which wait for the slower core: those of some names."""
    both = [Core(Mesh(), core) for core in CORES.values()]
    for name in names:
        if name in CORES:
            yield from _fastest(name, given, chips[name], [Core(Mesh(), CORES[name])])
        else:
            yield from _fastest(name, {**given, **HOMOGENEOUS[name]}, chips[HALF], both)


def _fastest(name: str, given: Mapping[str, Any], chip: Chip, cores: Sequence[Core]) -> Iterator[Candidate]:
    """Yield a layout with the micro-batch that is estimated to be the fastest, if any is legal."""
    trainings: dict[int, Training] = {}
    for size in (1, 2, 4, 8, 16):
        values = with_defaults({**given, "micro_batch_size": size})
        if not [*violations(values, len(cores))]:
            trainings[size] = training_of(values, len(cores), [chip], [len(cores)])
    if not trainings:
        return
    seconds = {size: step_time(training).seconds for size, training in trainings.items()}
    best = min(seconds, key=lambda size: seconds[size])
    job = Job(name.replace(" ", "_"), cores, argv({**given, "micro_batch_size": best}))
    yield Candidate(job, seconds[best], f"micro-batch {best}")


def interval(steps: Sequence[float], base: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Return the ratio of two means, and the 95 % interval of it by resampling both."""
    chance = random.Random(seed)
    ratios = sorted(
        statistics.fmean(chance.choices(steps, k=len(steps)))
        / statistics.fmean(chance.choices(base, k=len(base)))
        for _ in range(_RESAMPLED)
    )
    ratio = statistics.fmean(steps) / statistics.fmean(base)
    return ratio, ratios[_RESAMPLED // 40], ratios[-_RESAMPLED // 40]


def main(words: Sequence[str]) -> None:
    """Profile, plan, measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*CORES, *HOMOGENEOUS]
    parser.add_argument(
        "alternatives", nargs="*", choices=[[], *names], help=f"default: all: {', '.join(names)}"
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16, help="samples of 256 tokens per step")
    parser.add_argument(
        "--steps", type=int, default=12, help="steps of the slowest job (default: %(default)s)"
    )
    asked = parser.parse_args(words)
    given = model(asked.layers, asked.hidden, asked.batch)
    with tempfile.TemporaryDirectory() as name, shared_core(CORES[HALF]):
        chips = profiled(Path(name))
        plan, considered = planned(given, chips)
        print("\n".join(considered), flush=True)
        candidates = [plan, *alternatives(given, chips, asked.alternatives or names)]
        outcomes = in_turns(Path(name) / "jobs", [[one.job] for one in candidates], asked.steps)
    heads = ("layout", "", "estimated, s", "measured, s", "steps", "times the plan", "95 %")
    print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for one, outcome in zip(candidates, outcomes, strict=True):
        ratio, low, high = interval(outcome.steps, outcomes[0].steps)
        mean = statistics.fmean(outcome.steps)
        cells = (one.job.name, one.about, f"{one.estimated_s:.2f}", f"{mean:.2f}", f"{len(outcome.steps)}")
        print(f"| {' | '.join(cells)} | {ratio:.3f} | {low:.3f} to {high:.3f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
