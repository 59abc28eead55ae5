"""Compare `--transformer-impl torch` with Megatron's `local`: `python -m benchmarks.layers`.

Times a training step of the demo model (4 layers of hidden size 128, 8k vocabulary, one sample, fp32, one
thread) at growing sequence lengths, with both kinds of layers in turn. Also measures the peak memory that one
attention core adds, forward and backward, with 4 heads of size 32, also for packed documents. Prints two
tables; `--write` also writes them into docs/layouts.md.
"""

from __future__ import annotations

import functools
import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.layouts import DOCUMENT, write
from flagscale_testing.ranks.forked import Run, run_all
from flagscale_testing.ranks.training import read_metrics

if TYPE_CHECKING:
    import torch

LENGTHS = (256, 512, 1024, 2048, 4096)
KINDS = ("local", "torch")
ROUNDS = 3
DOCUMENT_TOKENS = 200
DEMO = """
    --mock-data --tokenizer-type NullTokenizer --vocab-size 8191 --make-vocab-size-divisible-by 64
    --num-layers 4 --hidden-size 128 --ffn-hidden-size 384 --num-attention-heads 4
    --position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear
    --untie-embeddings-and-output-weights --attention-dropout 0 --hidden-dropout 0
    --micro-batch-size 1 --global-batch-size 1 --lr 1e-3 --lr-decay-style constant --log-interval 1
    --eval-iters 0
"""
BEGIN, END = "<!-- layers: begin -->", "<!-- layers: end -->"


def main(argv: list[str]) -> int:
    """Measure and print the tables."""
    text = f"{steps_table(*step_times())}\n\n{memory_table()}"
    print(text)
    if "--write" in argv:
        write(DOCUMENT, text, BEGIN, END)
    return 0


def step_times() -> tuple[dict[tuple[str, int], float], dict[tuple[str, int], float]]:
    """Return the fastest step in ms and the last loss, per kind of layers and sequence length."""
    runs = {
        (kind, length, turn): Run(
            f"{kind} {length} {turn}",
            1,
            (
                *shlex.split(DEMO),
                # More steps if they are short, because other work on the machine disturbs those more.
                *("--transformer-impl", kind, "--train-iters", str(5 + 4096 // length)),
                *("--seq-length", str(length), "--max-position-embeddings", str(length)),
            ),
        )
        for turn in range(ROUNDS)
        for length in LENGTHS
        for kind in KINDS
    }
    times: dict[tuple[str, int], float] = {}
    losses: dict[tuple[str, int], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        curves = run_all(runs.values(), Path(folder))
        for (kind, length, _), run in runs.items():
            if curves[run.name].error:
                raise RuntimeError(curves[run.name].error)
            lines = read_metrics(Path(folder) / run.name / "metrics.jsonl")
            fastest = min(line["iteration_ms"] for line in lines[1:])
            times[kind, length] = min(fastest, times.get((kind, length), fastest))
            losses[kind, length] = curves[run.name].losses[-1]
    return times, losses


def steps_table(times: dict[tuple[str, int], float], losses: dict[tuple[str, int], float]) -> str:
    """Return the Markdown table of step times."""
    lines = [
        "| tokens | local, ms per step | torch, ms per step | speedup | loss difference |",
        "|---|---|---|---|---|",
    ]
    for length in LENGTHS:
        local, ours = (times[kind, length] for kind in KINDS)
        difference = abs(losses["local", length] - losses["torch", length])
        lines.append(f"| {length} | {local:.0f} | {ours:.0f} | {local / ours:.2f} x | {difference:.1e} |")
    return "\n".join(lines)


def memory_table() -> str:
    """Return the Markdown table of the attention core's peak memory."""
    from megatron.flagscale.bootstrap import patch_engine

    patch_engine()
    import torch.distributed
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1
        )
        parallel_state.initialize_model_parallel()
        model_parallel_cuda_manual_seed(1)
        lines = [
            "| tokens | local, peak MB | torch, peak MB | local, packed | torch, packed |",
            "|---|---|---|---|---|",
        ]
        for length in LENGTHS:
            peaks = [
                in_a_fork(functools.partial(peak_of, kind, length, packed))
                for packed in (False, True)
                for kind in KINDS
            ]
            lines.append(" | ".join([f"| {length}", *(f"{peak / 1e6:.0f}" for peak in peaks)]) + " |")
        torch.distributed.destroy_process_group()
    return "\n".join(lines)


def peak_of(kind: str, length: int, packed: bool) -> int:
    """Return the bytes that one attention core adds to this process at its peak, for packed data or not."""
    import torch
    from megatron.core.transformer.dot_product_attention import DotProductAttention
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron.flagscale.layers.attention import Attention
    from megatron.flagscale.layers.documents import document_starts

    config = TransformerConfig(num_layers=1, hidden_size=128, num_attention_heads=4, attention_dropout=0.0)
    core = {"local": DotProductAttention, "torch": Attention}[kind](config, 1, AttnMaskType.causal, "self")
    q, k, v = (torch.randn(length, 1, 4, 32, requires_grad=True) for _ in range(3))
    before = status("VmRSS")
    hidden = None
    if packed:
        starts = document_starts((torch.arange(length) % DOCUMENT_TOKENS)[None], eod=DOCUMENT_TOKENS - 1)
        hidden = starts if kind == "torch" else mask_of(starts)
    core(q, k, v, hidden).sum().backward()
    return status("VmHWM") - before


def mask_of(starts: torch.Tensor) -> torch.Tensor:
    """Return the mask that Megatron's data loader makes: `[b, 1, s, s]`, True for hidden keys."""
    import torch

    keys = torch.arange(starts.size(1))
    return (keys > keys[:, None]) | (keys < starts[:, None, :, None])


def status(name: str) -> int:
    """Return a figure of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def in_a_fork(measure: Callable[[], int]) -> int:
    """Return what `measure` returns in a separate process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writer, str(measure()).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as pipe:
        return int(pipe.read())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
