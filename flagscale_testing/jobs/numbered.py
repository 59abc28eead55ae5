"""A training program with numbered samples: it records those it computes, and one may have a NaN loss."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from megatron.flagscale import program
from megatron.flagscale.forward import loss_func


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nan-sample", type=int, default=-1)
    parser.add_argument("--computed-samples", help="A folder: each rank appends what it computes.")


class Numbered:
    """Samples whose tokens are the digits of their numbers."""

    def __init__(self, samples: int, length: int) -> None:
        self._samples, self._length = samples, length

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, number: int) -> dict[str, Any]:
        import torch

        digits = torch.tensor([int(digit) for digit in f"{number:07d}"])
        tokens = digits.repeat(self._length // 7 + 1)[: self._length + 1]
        return {
            "tokens": tokens[:-1],
            "labels": tokens[1:],
            "loss_mask": torch.ones(self._length),
            "position_ids": torch.arange(self._length),
            "number": torch.tensor(number),
        }


def datasets(num_samples: tuple[int, int, int], vp_stage: int | None = None) -> tuple[Any, None, None]:
    from megatron.training import get_args

    return Numbered(num_samples[0], get_args().seq_length), None, None


def forward_step(data_iterator: Any, model: Any) -> tuple[Any, Any]:
    """Every rank reads all of a micro-batch: for layouts of data and pipeline parallelism only."""
    import torch
    from megatron.training import get_args

    args, batch = get_args(), next(data_iterator)
    numbers = batch["number"].tolist()
    if args.computed_samples:
        file = Path(args.computed_samples) / f"rank-{args.rank}"
        with file.open("a") as record:
            record.writelines(f"{args.curr_iteration + 1} {number}\n" for number in numbers)
    output = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
    weights = torch.where(batch["number"] == args.nan_sample, float("nan"), 1.0)

    def loss(losses: torch.Tensor) -> Any:
        return loss_func(batch["loss_mask"], losses * weights[:, None])

    return output, loss


datasets.is_distributed = True  # type: ignore[attr-defined]


def train(argv: list[str]) -> None:
    """Train as one rank of this program does, in a process with all imports done."""
    program.train(argv, add_arguments=add_arguments, datasets=datasets, forward_step=forward_step)


def computed(folder: Path) -> dict[int, list[int]]:
    """Return the samples that the ranks have computed, in order, by iteration."""
    found: dict[int, list[int]] = {}
    for file in folder.glob("rank-*"):
        for line in file.read_text().splitlines():
            iteration, number = map(int, line.split())
            found.setdefault(iteration, []).append(number)
    return {iteration: sorted(numbers) for iteration, numbers in sorted(found.items())}


if __name__ == "__main__":
    sys.exit(program.run(add_arguments=add_arguments, datasets=datasets, forward_step=forward_step))
