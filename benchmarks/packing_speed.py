"""Measure what packing saves, and what attention within documents costs.

`python -m benchmarks.packing_speed`: each figure is a ratio of CPU seconds of one thread in the same
run.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.layouts import write
from flagscale_testing.conversations import Conversation, write_conversations
from flagscale_testing.ranks.conversations import samples_of_all
from flagscale_testing.ranks.forked import Run, run_all
from flagscale_testing.ranks.training import read_metrics

DOCUMENT = Path(__file__).parents[1] / "docs" / "instruction_tuning.md"
BEGIN, END = "<!-- packing speed: begin -->", "<!-- packing speed: end -->"
LENGTH, CONVERSATIONS, STEPS = 1024, 48, 2
ATTENTION_LENGTH, HEADS, GROUPS, WIDTH = 4096, 8, 2, 64
MODEL = f"""--tokenizer-type NullTokenizer --vocab-size 1000 --num-layers 2 --hidden-size 128
    --num-attention-heads 4 --group-query-attention --num-query-groups 2 --ffn-hidden-size 344
    --normalization RMSNorm --swiglu --position-embedding-type rope --disable-bias-linear
    --untie-embeddings-and-output-weights --seq-length {LENGTH} --max-position-embeddings {LENGTH}
    --micro-batch-size 1 --calculate-per-token-loss --lr 1e-3 --lr-decay-style constant
    --train-iters {STEPS} --eval-iters 0 --log-interval 1 --num-workers 0 --attention-dropout 0
    --hidden-dropout 0"""
PROGRAM = "benchmarks.packing_speed:train"


def train(argv: list[str]) -> None:
    """Train as `train_gpt_sft` does; write the CPU seconds of all steps beside the metrics."""
    from megatron.flagscale import program, train_gpt_sft

    began: list[float] = []

    def forward_step(data_iterator: Iterator[Any] | None, model: Any) -> Any:
        if not began:
            began.append(time.process_time())
        return train_gpt_sft.forward_step(data_iterator, model)

    program.train(
        argv,
        add_arguments=train_gpt_sft.add_arguments,
        datasets=train_gpt_sft.datasets,
        forward_step=forward_step,
    )
    metrics = Path(argv[argv.index("--metrics-file") + 1])
    (metrics.parent / "seconds").write_text(json.dumps(time.process_time() - began[0]))


def lengths(count: int, longest: int, mean: float) -> list[int]:
    """Return log-normal lengths of conversations, the same in each call."""
    drawn = np.random.RandomState(1).lognormal(np.log(mean) - 0.32, 0.8, count)
    return [int(one) for one in drawn.clip(16, longest)]


def tokens_per_second(folder: Path) -> dict[str, float]:
    """Return the tokens of conversations per CPU second, packed and not."""
    random = np.random.RandomState(2)
    train: list[Conversation] = []
    for length in lengths(CONVERSATIONS, LENGTH, LENGTH / 5):
        train.append(
            (random.randint(0, 999, length).tolist(), [0] * (length // 2) + [1] * (length - length // 2))
        )
    prefix = write_conversations(folder / "train", train)
    runs = []
    for name, options in (("packed", ""), ("not packed", "--no-packing")):
        batch = f"--global-batch-size {samples_of_all(train, options, LENGTH)}"
        data = ("--train-data-path", prefix, "--data-cache-path", str(folder / "cache"))
        runs.append(Run(name, 1, (*shlex.split(f"{MODEL} {options} {batch}"), *data), PROGRAM))
    for name, curve in run_all(runs, folder).items():
        if curve.error:
            raise RuntimeError(f"{name}: {curve.error}")
    found = {}
    for where in (folder / run.name for run in runs):
        tokens = read_metrics(where / "metrics.jsonl")[-1]["consumed_tokens"]
        found[where.name] = tokens / json.loads((where / "seconds").read_text())
    return found


def attention_cost(sizes: Sequence[int]) -> float:
    """Return the CPU time of attention within documents of these sizes, relative to plain causal."""
    import torch
    import torch.nn.functional as F

    from megatron.flagscale.layers.documents import document_attention

    torch.set_num_threads(1)
    total = sum(sizes)
    starts = torch.from_numpy(np.repeat(np.cumsum([0, *sizes[:-1]]), sizes))[None]

    def within(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return document_attention(q, k, v, starts, ((0, total),), WIDTH**-0.5)

    def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    shapes = [(1, heads, total, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    return _seconds(within, shapes) / _seconds(plain, shapes)


def _seconds(attention: Callable[..., Any], shapes: Sequence[tuple[int, ...]]) -> float:
    """Return the least CPU time of three forward and backward passes."""
    import torch

    found = []
    for _ in range(3):
        tensors = [torch.randn(shape, requires_grad=True) for shape in shapes]
        began = time.process_time()
        attention(*tensors).sum().backward()
        found.append(time.process_time() - began)
    return min(found)


def main() -> int:
    """Measure, print the table, and write it into the document."""
    with tempfile.TemporaryDirectory() as folder:
        speed = tokens_per_second(Path(folder))
    many = lengths(10_000, ATTENTION_LENGTH, 400)
    packed = many[: int(np.searchsorted(np.cumsum(many), ATTENTION_LENGTH))]
    packed.append(ATTENTION_LENGTH - sum(packed))
    rows = [
        ("training, packed: tokens per second, not packed = 1", speed["packed"] / speed["not packed"]),
        (f"attention, {len(packed)} conversations: time, plain causal = 1", attention_cost(packed)),
        ("attention, one conversation: time, plain causal = 1", attention_cost([ATTENTION_LENGTH])),
    ]
    text = "\n".join(
        ["| measured | ratio |", "|---|---|", *(f"| {name} | {ratio:.2f} |" for name, ratio in rows)]
    )
    print(text)
    write(DOCUMENT, text, BEGIN, END)
    return 0


if __name__ == "__main__":
    sys.exit(main())
