"""Speed and memory of conversions: `python -m benchmarks.convert`; the table of docs/conversion.md.

Models with different numbers of layers are copied by safetensors (every file is loaded and saved) and
converted both ways, in turn, each in its own process; all flush to disk. Prints megabytes per second, the
ratio to the copy, and the peak memory above the level after the imports.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.layouts import write

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "conversion.md"
BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"
LAYERS, ROUNDS = (4, 8, 16), 3
KINDS = ("copy", "to Megatron", "to Hugging Face")
SHARD_BYTES = 10**8


def make(folder: Path, layers: int) -> int:
    """Write a Llama in bf16, with 26 MB per layer, in shards of 100 MB; return its size in bytes."""
    import torch

    from megatron.flagscale.convert.convert import CONFIG
    from megatron.flagscale.convert.hf_config import write_config
    from megatron.flagscale.convert.huggingface_target import HuggingFaceTarget
    from megatron.flagscale.convert.model import Model, Rope
    from megatron.flagscale.convert.tensors import entries

    model = Model("llama", layers, 1024, 2816, 16, 16, 64, 8192, 4096, 1e-5, Rope(), False, "bfloat16")
    dtypes = dict.fromkeys(entries(model), torch.bfloat16)
    folder.mkdir()
    target = HuggingFaceTarget(folder, model, dtypes, SHARD_BYTES)
    for entry in dtypes:
        target.write(entry, torch.randn(entry.shape).bfloat16())
    target.finish()
    (folder / CONFIG).write_text(json.dumps(write_config(model, {})))
    return sum(2 * entry.elements for entry in dtypes)


def copy(source: Path, target: Path) -> None:
    """Load and save every shard with safetensors."""
    from safetensors.torch import load_file, save_file

    target.mkdir()
    for file in sorted(source.glob("*.safetensors")):
        save_file(load_file(file), target / file.name)
        with (target / file.name).open("rb") as written:
            os.fsync(written.fileno())


def work(source: Path, target: Path, kind: str) -> None:
    """Do one of `KINDS` in this process, and print the seconds and megabytes of memory it takes."""
    import safetensors.torch  # noqa: F401

    from megatron.flagscale.convert.convert import convert

    does: Callable[[Path, Path], object] = copy if kind == "copy" else convert
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak after the imports
    before = _memory("VmRSS")
    start = time.perf_counter()
    does(source, target)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak": _memory("VmHWM") - before}))


def _memory(name: str) -> float:
    """Return one line of this process's memory statistics, in MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].removesuffix("kB")) / 1024


def measure(source: Path, target: Path, kind: str) -> dict[str, float]:
    """Do one of `KINDS` in a new process; return its measurements."""
    command = [sys.executable, "-m", "benchmarks.convert", str(source), str(target), kind]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def table() -> str:
    """Measure every model and return the table."""
    lines = [
        "| layers | MB | copy MB/s | to Megatron MB/s | to Hugging Face MB/s | speed relative to copy "
        "| memory MB: copy | to Megatron | to Hugging Face |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for layers in LAYERS:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(_row(Path(folder), layers))
    return "\n".join(lines)


def _row(folder: Path, layers: int) -> str:
    size = make(folder / "hf", layers) / 1e6
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for turn in range(ROUNDS):
        targets = [folder / f"{kind} {turn}" for kind in KINDS]
        sources = (folder / "hf", folder / "hf", targets[1])
        for kind, source, target in zip(KINDS, sources, targets, strict=True):
            found[kind].append(measure(source, target, kind))
        for target in targets:
            subprocess.run(["rm", "-r", str(target)], check=True)
    speeds = [statistics.median(size / one["seconds"] for one in found[kind]) for kind in KINDS]
    peaks = [max(one["peak"] for one in found[kind]) for kind in KINDS]
    ratios = " and ".join(f"{speed / speeds[0]:.2f}" for speed in speeds[1:])
    cells = [
        layers,
        f"{size:.0f}",
        *(f"{speed:.0f}" for speed in speeds),
        ratios,
        *(f"{peak:.0f}" for peak in peaks),
    ]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    else:
        text = table()
        print(text)
        write(DOCUMENT, text, BEGIN, END)
