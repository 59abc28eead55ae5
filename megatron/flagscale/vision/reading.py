"""What each rank reads of the data of a training with pictures, and how long its sequences are.

Only the first rank of each tensor parallel group reads, and sends the others what it has read. The first
stage of a pipeline reads all of a micro-batch, and the last one no pictures. The stages between them read
nothing, unless samples are packed: then their attention has to know where each sample begins. Ranks of one
context parallel group read the same samples.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from megatron.core import mpu


@dataclass(frozen=True)
class Reading:
    """The micro-batches that one rank reads: the samples of the data parallel rank `rank` of `ranks`."""

    rank: int
    ranks: int
    has_pictures: bool
    """Whether the rank needs the tiles; if not, `media` is empty, and pictures are decoded only to check."""
    length: int | None
    """The length of all sequences; None: of each micro-batch's longest sample, rounded up."""
    multiple: int
    """The number of which the length of each sequence is a multiple."""

    def padded(self, longest: int) -> int:
        """Return the length of a micro-batch whose longest sample has this many tokens."""
        return self.length or -(-longest // self.multiple) * self.multiple


def is_packed(args: argparse.Namespace) -> bool:
    """Return whether several samples are packed into each sequence."""
    return bool(args.packing_buffer_size)


def has_one_length(args: argparse.Namespace) -> bool:
    """Return whether all sequences have `seq_length` tokens; otherwise micro-batches differ in length.

    With different lengths, Megatron-core 0.19.2 waits for the device at each send between stages, so that an
    interleaved pipeline overlaps nothing, and without overlap one of four stages hangs (seen with gloo). Its
    `allgather` dispatcher of experts expects equal lengths on all ranks.
    """
    gathers_tokens = bool(args.num_experts) and args.moe_token_dispatcher_type == "allgather"
    return is_packed(args) or args.virtual_pipeline_model_parallel_size is not None or gathers_tokens


def reading(args: argparse.Namespace, vp_stage: int | None = None) -> Reading | None:
    """Return what this rank reads for a chunk of the model; None if it reads nothing."""
    if mpu.get_tensor_model_parallel_rank() or not stage_reads(args, vp_stage):
        return None
    return Reading(
        rank=mpu.get_data_parallel_rank(),
        ranks=mpu.get_data_parallel_world_size(),
        has_pictures=is_first(vp_stage),
        length=args.seq_length if has_one_length(args) else None,
        multiple=length_multiple(args),
    )


def length_multiple(args: argparse.Namespace) -> int:
    """Return the number of equal parts into which ranks cut a sequence."""
    cp = args.context_parallel_size
    return (args.tensor_model_parallel_size if args.sequence_parallel else 1) * (2 * cp if cp > 1 else 1)


def stage_reads(args: argparse.Namespace, vp_stage: int | None) -> bool:
    """Return whether a stage (or a chunk of an interleaved one) needs micro-batches."""
    return is_first(vp_stage) or is_last(vp_stage) or is_packed(args)


def is_first(vp_stage: int | None) -> bool:
    """Return whether a stage or chunk has the embeddings, and thus the pictures."""
    return bool(mpu.is_pipeline_first_stage(ignore_virtual=vp_stage is None, vp_stage=vp_stage))


def is_last(vp_stage: int | None) -> bool:
    """Return whether a stage or chunk computes the loss."""
    return bool(mpu.is_pipeline_last_stage(ignore_virtual=vp_stage is None, vp_stage=vp_stage))
