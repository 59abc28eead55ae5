"""Estimate training jobs of `gpu_mfu` first, then measure them: `python -m benchmarks.gpu_mfu --estimate`.

Each job is a row in the form of measured.jsonl, with what was estimated under `predictions`: `flagscale` from
published figures, `flagscale profiled` from a file of `tools/profile_chip.py`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flagscale.run.rundir import RunDir

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
WARM_UP = 5

Experiment = dict[str, Any]


@dataclass(frozen=True)
class Variation:
    """A configuration: what differs from the size's own."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the engine."""


VARIATIONS = (
    Variation("as it is"),
    Variation("micro-batch of 1", {"micro_batch_size": 1}),
    Variation("core attention again", {"recompute_granularity": "selective"}),
    Variation(
        "all layers again",
        {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
    ),
    Variation(
        "SwiGLU, RMSNorm, rotary, 4 groups",
        {
            "swiglu": True,
            "normalization": "RMSNorm",
            "position_embedding_type": "rope",
            "group_query_attention": True,
            "num_query_groups": 4,
        },
    ),
)
"""Five that differ in what decides time and memory."""


def compare(
    jobs: Mapping[str, Experiment], chip: str, device: str, chips: Path | None, rows_file: Path
) -> list[dict[str, Any]]:
    """Estimate all jobs, then measure each; the rows are written after every step.

    Args:
        chip: the chip's name in `chips` and, if it has published figures, in FlagScale's own table.
        device: the name of the device, for the rows.

    Raises:
        CalledProcessError: a command failed; its output has been printed.
    """
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folders = {job: Path(name) / str(number) for number, job in enumerate(jobs)}
        for job, experiment in jobs.items():
            predictions = {
                tool: prediction(folders[job], experiment, chip, file) for tool, file in _tools(chip, chips)
            }
            rows.append(row(job, experiment, (chip, device), predictions))
        _write(rows_file, rows)
        for made, (job, experiment) in zip(rows, jobs.items(), strict=True):
            made["measured"] = measured(folders[job], experiment)
            _write(rows_file, rows)
    return rows


def _tools(chip: str, chips: Path | None) -> list[tuple[str, Path | None]]:
    from flagscale.planner.chips import chip_table

    published: list[tuple[str, Path | None]] = [("flagscale", None)] if chip in chip_table() else []
    return [*published, *([("flagscale profiled", chips)] if chips else [])]


def prediction(folder: Path, experiment: Experiment, chip: str, chips: Path | None) -> dict[str, float]:
    """Return what `action=estimate` says of a job, in the units of a row's `measured`."""
    own = {"chips": str(chips.absolute())} if chips else {}
    job = {**experiment, "experiment": {**experiment["experiment"], **own}}
    reported = json.loads(_run(folder, job, "action=estimate", "output=json", f"chip={chip}"))
    step, stages = reported["step"], reported["stages"]
    if step is None:
        raise SystemExit(f"the time is not estimated: {reported['missing']}")
    return {
        "iteration_s": step["seconds"],
        "iteration_s_low": step["seconds_low"],
        "iteration_s_high": step["seconds_high"],
        "peak_alloc_gib": max(stage["allocated_bytes"] for stage in stages) / GIB,
    }


def measured(folder: Path, experiment: Experiment) -> dict[str, float]:
    """Train; return the medians after the warm-up."""
    _run(folder, experiment, "action=test")
    rundir = RunDir(Path(experiment["experiment"]["exp_dir"].format(folder=folder)))
    lines = [json.loads(line) for line in rundir.metrics.read_text().splitlines()]
    counted = [line for line in lines if line.get("iteration", 0) > WARM_UP and "iteration_ms" in line]
    return {
        "iteration_s": statistics.median(line["iteration_ms"] for line in counted) / 1000,
        "peak_alloc_gib": max(line["mem_bytes"] for line in counted) / GIB,
    }


def _run(folder: Path, experiment: Experiment, *overrides: str) -> str:
    """Run a command on an experiment in a folder; return its output."""
    folder.mkdir(exist_ok=True)
    text = json.dumps(experiment).replace("{folder}", str(folder))
    (folder / "config.yaml").write_text(text)  # JSON is also YAML
    words = ["--config-path", str(folder), "--config-name", "config", *overrides]
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *words], cwd=folder, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
    done.check_returncode()
    return done.stdout


def row(
    name: str, experiment: Experiment, hardware: tuple[str, str], predictions: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a job's row without its measured figures; `hardware`: the chip's name and the device's own."""
    train, runner = experiment["train"], experiment["experiment"]["runner"]
    ranks = runner["nproc_per_node"]
    chip, device = hardware
    return {
        "id": f"flagscale-{name}",
        "source": {"key": "flagscale", "path": "benchmarks/gpu_mfu.py", "row": name},
        "hardware": {"gpu": chip, "device": device, "count": ranks, "nodes": 1, "gpus_per_node": ranks},
        "model": {
            "name": name,
            "layers": train["num_layers"],
            "hidden": train["hidden_size"],
            "heads": train["num_attention_heads"],
            "kv_heads": train.get("num_query_groups", train["num_attention_heads"]),
            "ffn": train["ffn_hidden_size"],
            "vocab": train["vocab_size"] + 1,
            "gated": bool(train.get("swiglu")),
            "tied": True,
        },
        "parallel": {"tp": 1, "pp": 1, "dp": ranks},
        "train": {
            "seq": train["seq_length"],
            "mbs": train["micro_batch_size"],
            "gbs": train["global_batch_size"],
        },
        "precision": {"compute": "bf16" if train.get("bf16") else "fp32"},
        "flags": {"megatron_args": {key: value for key, value in train.items() if value is not None}},
        "software": {name: version(name) for name in ("torch", "megatron-core")},
        "quality": "A",
        "predictions": dict(predictions),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the Markdown table of errors: estimated over measured, minus 1."""
    tools = list(rows[0]["predictions"])
    heads = [f"{tool}: {figure}" for tool in tools for figure in ("time", "memory")]
    lines = [
        f"| configuration | s per step | GiB | {' | '.join(heads)} |",
        "|---|---|---|" + "---|" * len(heads),
    ]
    for one in rows:
        found = one["measured"]
        errors = [
            f"{one['predictions'][tool][key] / found[key] - 1:+.1%}"
            for tool in tools
            for key in ("iteration_s", "peak_alloc_gib")
        ]
        cells = [
            one["source"]["row"],
            f"{found['iteration_s']:.3f}",
            f"{found['peak_alloc_gib']:.1f}",
            *errors,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(one)}\n" for one in rows))
