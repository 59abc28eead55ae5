"""Count the tokens of samples that differ in length, for the trainer's figures of an iteration."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from megatron.core import mpu
from megatron.training.training import update_seqlen_stats_from_cu_seqlens


def count(lengths: Sequence[int]) -> None:
    """Add the lengths of a micro-batch's samples, without padding; none on a rank that does not read them.

    All ranks have to call it in each forward step, because the trainer then sums over all of them. It expects
    that each rank of a model has counted the same samples, so a rank that reads counts for those that do not.
    """
    if torch.is_grad_enabled():  # evaluations are not part of the training
        copies = mpu.get_tensor_model_parallel_world_size() * mpu.get_pipeline_model_parallel_world_size()
        counted = [*lengths] * copies or [0]
        update_seqlen_stats_from_cu_seqlens(torch.tensor([0, *accumulate(counted)]))
