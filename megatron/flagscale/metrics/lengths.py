"""Count the tokens of a step if samples have padding, or hold several documents that differ in length."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from megatron.core import mpu
from megatron.training.training import update_seqlen_stats_from_cu_seqlens


def count_lengths(lengths: Sequence[int] = ()) -> None:
    """Add the lengths of a micro-batch's documents, without padding, to the trainer's figures.

    All ranks have to call it in each forward step, with nothing if they do not read samples: the trainer sums
    over all of them. It expects that each rank of a model has counted the same samples, so a rank that reads
    counts for those that do not. Evaluations are not counted.
    """
    if not torch.is_grad_enabled():
        return
    copies = mpu.get_tensor_model_parallel_world_size() * mpu.get_pipeline_model_parallel_world_size()
    counted = [*lengths] * copies or [0]
    update_seqlen_stats_from_cu_seqlens(torch.tensor([0, *accumulate(counted)]))
