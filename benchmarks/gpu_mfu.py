"""Measure training's tokens per second and share of the chips' peak: `python -m benchmarks.gpu_mfu`.

Runs the real worker by `run.py action=test` on the CUDA devices of this host (`--size tiny` also on CPU,
without a share) and reads its metrics.jsonl: the median of the iterations after the warm-up.
The sizes are those of MosaicML's published figures: GPT with tied embeddings, 2048 tokens, BF16.

The FLOP of one token, forward and backward, are 6 per weight of a matrix product (including the vocabulary's)
plus, for the attention of each layer, 12 x tokens x hidden if every pair of tokens were computed (*full*, as
MosaicML and PaLM count), or half of that, which a causal model needs (*causal*, as Megatron counts).

With `--estimate ROWS.jsonl --chip NAME [--chips FILE]`, five configurations of each size are estimated first,
then measured, and the errors are printed instead (see `benchmarks.predicted`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.predicted import VARIATIONS, WARM_UP, Variation, compare
from benchmarks.predicted import table as errors_table
from flagscale.run.rundir import RunDir

ROOT = Path(__file__).resolve().parents[1]
FORMULA = (
    "FLOP per token = 6 x weights of matrix products (including the vocabulary's) + attention: "
    "12 x layers x hidden x tokens (full) or half of it (causal)"
)
PEAKS = {"H200": 989e12, "H100 80GB HBM3": 989e12, "A100": 312e12}
"""FLOP/s of dense BF16, by a part of the device's name; other variants of a chip have other clocks."""


@dataclass(frozen=True)
class Size:
    """A model and its training settings; the state of `optimizer` fits on one chip of 141 GB."""

    layers: int
    hidden: int
    heads: int
    vocabulary: int
    tokens: int
    micro_batch: int
    micro_batches: int
    optimizer: str

    def weights(self) -> int:
        """Return the weights of matrix products: 12 h^2 per layer, and the tied vocabulary's."""
        return 12 * self.layers * self.hidden**2 + self.vocabulary * self.hidden

    def flops_a_token(self, causal: bool) -> float:
        """Return the floating-point operations of one token, forward and backward, by FORMULA."""
        attention = 12 * self.layers * self.hidden * self.tokens
        return 6 * self.weights() + (attention / 2 if causal else attention)


SIZES = {
    "tiny": Size(2, 64, 4, 256, 32, 2, 2, "adam"),
    "small": Size(4, 512, 8, 8192, 256, 2, 2, "adam"),
    "1.3b": Size(24, 2048, 16, 50304, 2048, 8, 8, "adam"),
    "7b": Size(32, 4096, 32, 50304, 2048, 4, 16, "sgd"),
}


@dataclass(frozen=True)
class Outcome:
    """The result of a run on devices of one kind."""

    device: str
    ranks: int
    step_seconds: float
    tokens_per_s: float
    memory_bytes: int

    def share(self, size: Size, causal: bool) -> float | None:
        """Return the share of the devices' peak that the model's work used; None if the peak is unknown."""
        peak = next((peak for name, peak in PEAKS.items() if name in self.device), None)
        return None if peak is None else self.tokens_per_s * size.flops_a_token(causal) / (self.ranks * peak)


def experiment(size: Size, folder: Path, ranks: int, iterations: int) -> dict[str, Any]:
    """Return the experiment file: data parallel over the ranks, which share the optimizer's state."""
    return {
        "experiment": {
            "exp_name": "gpu_mfu",
            "exp_dir": str(folder / "run"),
            "task": {"type": "train", "backend": "megatron", "entrypoint": "megatron.flagscale.train_gpt"},
            "runner": {"nproc_per_node": ranks},
        },
        "train": {
            "transformer_impl": "torch",
            "num_layers": size.layers,
            "hidden_size": size.hidden,
            "ffn_hidden_size": 4 * size.hidden,
            "num_attention_heads": size.heads,
            "seq_length": size.tokens,
            "max_position_embeddings": size.tokens,
            "disable_bias_linear": True,
            "attention_dropout": 0.0,
            "hidden_dropout": 0.0,
            "bf16": True,
            "micro_batch_size": size.micro_batch,
            "global_batch_size": size.micro_batch * size.micro_batches * ranks,
            "optimizer": size.optimizer,
            "use_distributed_optimizer": size.optimizer == "adam",
            "overlap_grad_reduce": ranks > 1,
            "lr": 1e-4,
            "train_iters": iterations,
            "log_interval": 1,
            "eval_iters": 0,
            "save": None,
            "load": None,
            "mock_data": True,
            "tokenizer_type": "NullTokenizer",
            "vocab_size": size.vocabulary - 1,
            "make_vocab_size_divisible_by": 64,
        },
        "action": "test",
    }


def varied(size: Size, variation: Variation, ranks: int, iterations: int) -> dict[str, Any]:
    """Return the experiment of a variation, in a folder to be filled in."""
    found = experiment(size, Path("{folder}"), ranks, iterations)
    return {**found, "train": {**found["train"], **variation.changes}}


def measure(size: Size, ranks: int, iterations: int) -> Outcome:
    """Train in a folder that is then removed; raise CalledProcessError if the run fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # JSON is also YAML.
        (folder / "config.yaml").write_text(json.dumps(experiment(size, folder, ranks, iterations)))
        words = ["--config-path", str(folder), "--config-name", "config"]
        # Its progress goes to stderr, so that stdout has the table only.
        subprocess.run([sys.executable, str(ROOT / "run.py"), *words], cwd=folder, stdout=2, check=True)
        lines = [json.loads(line) for line in RunDir(folder / "run").metrics.read_text().splitlines()]
    return outcome([line for line in lines if "iteration_ms" in line], ranks)


def outcome(lines: list[dict[str, Any]], ranks: int) -> Outcome:
    """Return the medians of the lines after the warm-up; raise ValueError if there are none."""
    counted = [line for line in lines if line["iteration"] > WARM_UP]
    if not counted:
        raise ValueError(f"no iteration after the {WARM_UP} warm-up iterations")
    return Outcome(
        device(),
        ranks,
        statistics.median(line["iteration_ms"] for line in counted) / 1000,
        statistics.median(line["tokens_per_s"] for line in counted),
        max(line["mem_bytes"] for line in counted),
    )


def device() -> str:
    """Return the name of this host's first GPU, or `cpu`."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        names = []
    return names[0].strip() if names else "cpu"


def table(results: dict[str, tuple[Size, Outcome]]) -> str:
    """Return the Markdown table, with one row per model."""
    lines = [
        "| model | weights | device | optimizer | micro-batch x number x tokens | s per step | tokens/s "
        "| MFU full | MFU causal | GB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (size, found) in results.items():
        shares = (found.share(size, causal) for causal in (False, True))
        full, causal = ("-" if share is None else f"{share:.1%}" for share in shares)
        batch = f"{size.micro_batch} x {size.micro_batches} x {size.tokens}"
        lines.append(
            f"| {name} | {size.weights() / 1e9:.2f} B | {found.ranks} x {found.device} | {size.optimizer} "
            f"| {batch} | {found.step_seconds:.3f} | {found.tokens_per_s:.0f} | {full} | {causal} "
            f"| {found.memory_bytes / 1e9:.1f} |"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Measure the sizes and print the table with its formula."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--size",
        action="append",
        choices=SIZES,
        help="model to measure; can be repeated (default: 1.3b and 7b)",
    )
    parser.add_argument(
        "--ranks", type=int, default=1, help="number of devices of this host to use (default: %(default)s)"
    )
    parser.add_argument(
        "--iterations", type=int, default=25, help=f"iterations, including {WARM_UP} for the warm-up"
    )
    own = {"optimizer": str, "micro_batch": int, "micro_batches": int}
    for name, kind in own.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="default: that of the size")
    parser.add_argument("--estimate", type=Path, metavar="ROWS.jsonl", help="estimate, measure, write rows")
    parser.add_argument("--chip", help="with --estimate: the chip's name")
    parser.add_argument("--chips", type=Path, help="with --estimate: a file of tools/profile_chip.py")
    given = parser.parse_args(argv)
    if bool(given.estimate) != bool(given.chip):
        parser.error("--estimate needs --chip NAME: the chip in FlagScale's table or in --chips FILE")
    changes = {name: value for name in own if (value := getattr(given, name)) is not None}
    results = {}
    for name in given.size or ["1.3b", "7b"]:
        size = replace(SIZES[name], **changes)
        if given.estimate:
            jobs = {
                f"{name}, {variation.name}": varied(size, variation, given.ranks, given.iterations)
                for variation in VARIATIONS
            }
            print(errors_table(compare(jobs, given.chip, device(), given.chips, given.estimate)))
            continue
        results[name] = size, measure(size, given.ranks, given.iterations)
    if results:
        print(f"{FORMULA}\n\n{table(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
