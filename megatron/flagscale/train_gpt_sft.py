"""Instruction tuning of a GPT model: `torchrun ... -m megatron.flagscale.train_gpt_sft ARGUMENTS`.

It trains on conversations, with a loss on answers only; tools/datasets/chat.py prepares them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from megatron.flagscale.forward import step
from megatron.flagscale.program import run
from megatron.flagscale.sft.arguments import add_arguments

if TYPE_CHECKING:
    import torch


def datasets(num_samples: tuple[int, int | None, int], vp_stage: int | None = None) -> list[Any]:
    """Return the datasets of conversations for training, validation and test."""
    from megatron.flagscale.sft.data import build_datasets

    return build_datasets(num_samples, vp_stage)


# Every rank has to build them, because all ranks take part in building a blend.
datasets.is_distributed = True  # type: ignore[attr-defined]


def forward_step(data_iterator: Iterator[Any] | None, model: Any) -> tuple[torch.Tensor, Any]:
    """Run one micro-batch through this rank's part of the model; return its output and the loss function."""
    from megatron.flagscale.sft.data import get_batch

    return step(data_iterator, model, get_batch)


if __name__ == "__main__":
    sys.exit(run(add_arguments=add_arguments, datasets=datasets, forward_step=forward_step))
