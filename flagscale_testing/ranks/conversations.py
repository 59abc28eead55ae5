"""Conversations learnt by Megatron in several layouts, compared with transformers.

Used by the tests and, for the table in docs/instruction_tuning.md, by `benchmarks/instruction_tuning.py`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flagscale_testing.conversations import LENGTH, Conversation, write_conversations
from flagscale_testing.conversion import Case, make_model, task_argv
from flagscale_testing.ranks.forked import Curve, Run, run_all
from flagscale_testing.ranks.layouts import CP2, PP2, TP2
from flagscale_testing.ranks.training import read_metrics
from megatron.flagscale.convert.convert import convert

STEPS = 3
LEARNING_RATE = 1e-3
PROGRAM = "flagscale_testing.ranks.conversations:train"
_CASE = Case("Llama", {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 48})
LAYOUTS: Mapping[str, tuple[int, str]] = {
    "one process": (1, ""),
    "not packed": (1, "--no-packing"),
    "TP2 SP": (2, f"{TP2} --sequence-parallel"),
    "CP2": (2, CP2),
    "PP2": (2, PP2),
    "PP2 interleaved": (2, f"{PP2} --num-virtual-stages-per-pipeline-rank 2"),
    "DP2, distributed optimizer": (2, "--use-distributed-optimizer"),
    "not packed, PP2": (2, f"{PP2} --no-packing"),
}
"""By name: the number of ranks, and the arguments."""


def train(argv: list[str]) -> None:
    """Train as `megatron.flagscale.train_gpt_sft` does, in a process with all imports done."""
    from megatron.flagscale import program, train_gpt_sft

    program.train(
        argv,
        add_arguments=train_gpt_sft.add_arguments,
        datasets=train_gpt_sft.datasets,
        forward_step=train_gpt_sft.forward_step,
    )


@dataclass(frozen=True)
class Figures:
    """Of a training: the loss and the gradient's norm of each step, and the loss of the validation set."""

    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    validation: float

    def difference(self, other: Figures) -> tuple[float, float]:
        """Return the largest difference between losses, and between norms."""
        losses = (*self.losses, self.validation), (*other.losses, other.validation)
        return _largest(*losses), _largest(self.grad_norms, other.grad_norms)


def _largest(ones: Sequence[float], others: Sequence[float]) -> float:
    return max(abs(one - other) for one, other in zip(ones, others, strict=True))


@dataclass(frozen=True)
class Outcome:
    """The training in one layout."""

    figures: Figures
    consumed_tokens: int
    samples: int
    """In one pass over the conversations, which is also one step."""
    error: str = ""


def with_transformers(
    model: Any, train: Sequence[Conversation], valid: Sequence[Conversation], steps: int = STEPS
) -> Figures:
    """Return the figures of transformers and torch: all conversations, padded, in each step."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    losses, norms = [], []
    for _ in range(steps):
        loss = _loss(model, train)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        return Figures(tuple(losses), tuple(norms), _loss(model, valid).item())


def _loss(model: Any, conversations: Sequence[Conversation]) -> Any:
    import torch

    longest = max(len(ids) for ids, _ in conversations)
    inputs, labels, seen = (torch.full((len(conversations), longest), value) for value in (0, -100, 0))
    for row, (ids, masks) in enumerate(conversations):
        inputs[row, : len(ids)] = torch.tensor(ids)
        seen[row, : len(ids)] = 1
        labels[row, : len(ids)] = torch.where(torch.tensor(masks) != 0, torch.tensor(ids), -100)
    return model(input_ids=inputs, attention_mask=seen, labels=labels).loss


def trained(
    names: Iterable[str], folder: Path, train: Sequence[Conversation], valid: Sequence[Conversation]
) -> tuple[Figures, dict[str, Outcome]]:
    """Return the figures of transformers, and what each named layout makes of the same model and data.

    Every step reads all conversations, so the order of epochs does not matter.
    """
    model, common = prepared(folder, train, valid)
    loading = ("--load", str(folder / "megatron"), "--finetune")
    samples, runs = {}, []
    for name in names:
        ranks, options = LAYOUTS[name]
        samples[name] = samples_of_all(train, options)
        argv = (*common, *loading, *shlex.split(options), "--global-batch-size", str(samples[name]))
        runs.append(Run(name, ranks, argv, PROGRAM))
    curves = run_all(runs, folder / "runs")
    expected = with_transformers(model, train, valid)
    return expected, {
        name: _outcome(curve, folder / "runs" / name, samples[name]) for name, curve in curves.items()
    }


def prepared(
    folder: Path, train: Sequence[Conversation], valid: Sequence[Conversation]
) -> tuple[Any, tuple[str, ...]]:
    """Return a random model, also saved in `folder/hf` and `folder/megatron`, and the arguments that all
    trainings on these conversations have: without its checkpoint and the global batch size."""
    model = make_model(_CASE, folder / "hf")
    convert(folder / "hf", folder / "megatron")
    paths = [write_conversations(folder / name, data) for name, data in (("train", train), ("valid", valid))]
    return model, (
        *task_argv(folder / "megatron", _CASE),
        *shlex.split(f"--seq-length {LENGTH} --micro-batch-size 1 --calculate-per-token-loss"),
        *shlex.split(f"--lr {LEARNING_RATE} --lr-decay-style constant --weight-decay 0 --adam-beta2 0.999"),
        *shlex.split(f"--train-iters {STEPS} --eval-interval {STEPS} --eval-iters 1 --full-validation"),
        *shlex.split("--tokenizer-type NullTokenizer --log-interval 1 --num-workers 0"),
        *("--data-cache-path", str(folder / "cache")),
        *("--train-data-path", paths[0], "--valid-data-path", paths[1]),
    )


def samples_of_all(train: Sequence[Conversation], options: str = "", length: int = LENGTH) -> int:
    """Return how many samples of a length the conversations are: the global batch that reads all."""
    from flagscale.checks.sft import samples_of

    sizes = [len(ids) for ids, _ in train]
    return samples_of(sizes, {"no_packing": "--no-packing" in options, "seq_length": length})


def _outcome(curve: Curve, folder: Path, samples: int) -> Outcome:
    figures = figures_of(curve, folder)
    if figures is None:
        return Outcome(Figures((), (), 0.0), 0, samples, curve.error or "no validation")
    lines = read_metrics(folder / "metrics.jsonl")
    consumed = [line["consumed_tokens"] for line in lines if "consumed_tokens" in line]
    return Outcome(figures, consumed[-1], samples)


def figures_of(curve: Curve, folder: Path) -> Figures | None:
    """Return the figures of a run that left its metrics in `folder`; None if it failed."""
    lines = read_metrics(folder / "metrics.jsonl")
    validation = [line["validation_loss"] for line in lines if "validation_loss" in line]
    is_done = validation and not curve.error
    return Figures(curve.losses, curve.grad_norms, validation[-1]) if is_done else None
