"""Count the work of a step for the trainer's figures: samples differ in length and in their tiles."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import accumulate

import torch
from megatron.core import mpu
from megatron.training.training import update_seqlen_stats_from_cu_seqlens

from flagscale.vision.tiling import Vision
from megatron.flagscale.chips import chip
from megatron.flagscale.metrics.patches import add_flops
from megatron.flagscale.vision.flops import tile_flops

_tiles: list[int] = []
"""The tiles of the micro-batches that this rank has read since they were reported."""


def count(lengths: Sequence[int] = (), tiles: int = 0) -> None:
    """Add the lengths of a micro-batch's samples, without padding, and its tiles.

    All ranks have to call it in each forward step, with nothing if they do not read samples and pictures: the
    trainer sums over all of them. It expects that each rank of a model has counted the same samples, so a
    rank that reads counts for those that do not.
    """
    if not torch.is_grad_enabled():
        return  # evaluations are not part of the training
    copies = mpu.get_tensor_model_parallel_world_size() * mpu.get_pipeline_model_parallel_world_size()
    counted = [*lengths] * copies or [0]
    update_seqlen_stats_from_cu_seqlens(torch.tensor([0, *accumulate(counted)]))
    if mpu.get_context_parallel_rank() == 0:
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
