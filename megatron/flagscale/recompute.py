"""Recompute that differs between pipeline stages and micro-batches, in the engine's own transformer block."""

from __future__ import annotations

import argparse
import copy
import functools
from typing import TYPE_CHECKING, Any

from flagscale.checks.recompute import (
    RecomputeSchedule,
    has_recompute_schedule,
    recompute_schedule,
    recompute_violations,
)
from flagscale.errors import UserError
from megatron.flagscale.checks import worker_problems

if TYPE_CHECKING:
    import torch


def schedule_recompute(model_config: Any, args: argparse.Namespace) -> None:
    """Make a model that is built from `model_config` follow the recompute lists, if any are given.

    Call it with validated arguments; raises `UserError` with all mistakes in the lists. Megatron's block
    reads from its config at each forward whether and how to recompute. Each block gets a config of its own,
    which is set from the lists before every forward, so nothing is left over from the previous micro-batch.
    """
    values = vars(args)
    if not has_recompute_schedule(values):
        return
    pp, vpp = args.pipeline_model_parallel_size, args.virtual_pipeline_model_parallel_size or 1
    micro_batches = args.global_batch_size // (args.micro_batch_size * args.data_parallel_size)
    if found := list(recompute_violations(values, pp, vpp, micro_batches)):
        raise UserError(worker_problems(found))
    model_config.pre_wrap_hooks.append(functools.partial(_schedule_all, recompute_schedule(values), pp))


def _schedule_all(lists: RecomputeSchedule, pp: int, chunks: list[torch.nn.Module]) -> list[torch.nn.Module]:
    from megatron.core import mpu

    for chunk in chunks:
        # In the order of the layers, a stage's second chunk comes after the last stage's first one.
        stage = (chunk.decoder.vp_stage or 0) * pp + mpu.get_pipeline_model_parallel_rank()
        parts = [(chunk.decoder, chunk.decoder.layers[0])] if len(chunk.decoder.layers) else []
        if hasattr(chunk, "mtp"):
            parts += [(head, head.mtp_model_layer) for head in chunk.mtp.layers]
        for part, layer in parts:
            part.config = copy.copy(part.config)
            part.register_forward_pre_hook(functools.partial(_set, lists, stage, layer))
    return chunks


def _set(lists: RecomputeSchedule, stage: int, layer: Any, part: Any, _: Any) -> None:
    # An evaluation recomputes nothing, and may have more micro-batches than the lists cover.
    if part.training:
        # Every schedule sets it on the layers before a forward (`cuda_graphs.py:set_current_microbatch`).
        setting = lists.resolve(stage, layer.current_microbatch)
        part.config.recompute_granularity = setting.granularity
        part.config.recompute_method = setting.method
        # A prediction head is recomputed as a whole, and the engine accepts no other number for it.
        part.config.recompute_num_layers = setting.num_layers if hasattr(part, "layers") else 1
