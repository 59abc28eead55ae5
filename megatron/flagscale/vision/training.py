"""The model configuration and the data of a training with pictures, as `train_llava` passes them on."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from megatron.flagscale.vision.freezing import freeze
from megatron.flagscale.vision.reading import Reading, has_one_length, reading


def training_config(args: argparse.Namespace) -> Any:
    """Return Megatron's configuration of the model, with what a training adds to it."""
    from megatron.flagscale.vision.builder import llava_config

    config = llava_config(args)

    def frozen(chunks: list[torch.nn.Module]) -> list[torch.nn.Module]:
        freeze(args, chunks)
        return chunks

    config.pre_wrap_hooks.append(frozen)
    # The engine accepts it only on a configuration that exists already.
    config.transformer.variable_seq_lengths = not has_one_length(args)
    return config


Loaders = Callable[[argparse.Namespace, Reading | None], tuple[Any, Any]]
"""`(args, what this rank reads, or None) -> (training, validation)`: iterators of micro-batches (see
`vision.batch`) without an end, None on a rank that reads nothing, or if there is no such data. The validation
begins again with its first sample if `iter()` is called on it. Called on every rank and for each of its chunks
of the model."""


def external(loaders: Loaders, vp_stage: int | None) -> tuple[Any, Any, None]:
    """Return the data of a rank, which the trainer takes as it is, without samplers and loaders of its own."""
    from megatron.training import get_args

    args = get_args()
    args.dataloader_type = "external"
    return *loaders(args, reading(args, vp_stage)), None
