"""Count the work of a step for the trainer's figures: samples differ in length and in their tiles."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from megatron.core import mpu

from flagscale.vision.tiling import Vision
from megatron.flagscale.chips import chip
from megatron.flagscale.metrics.lengths import count_lengths
from megatron.flagscale.metrics.patches import add_flops
from megatron.flagscale.vision.flops import tile_flops

_tiles: list[int] = []
"""The tiles of the micro-batches that this rank has read since they were reported."""


def count(lengths: Sequence[int] = (), tiles: int = 0) -> None:
    """Add the lengths of a micro-batch's samples, without padding, and its tiles.

    All ranks have to call it in each forward step, as `count_lengths`.
    """
    count_lengths(lengths)
    # Evaluations are not part of the training.
    if torch.is_grad_enabled() and mpu.get_context_parallel_rank() == 0:
        _tiles.append(tiles)


def report_pictures(args: argparse.Namespace, vision: Vision) -> None:
    """Add tower and projector to the floating-point operations that the trainer reports."""
    of_tile = tile_flops(vision, args.hidden_size, is_trained=not args.freeze_ViT)

    def of_all() -> float:
        total = torch.tensor(sum(_tiles), device=chip().device())
        _tiles.clear()
        torch.distributed.all_reduce(total)
        return int(total) * of_tile

    add_flops(of_all)
