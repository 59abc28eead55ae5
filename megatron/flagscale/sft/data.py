"""Data of instruction tuning: the datasets of conversations, and the batch of one micro-step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.utils import get_batch_on_this_cp_rank
from megatron.training import get_args

from flagscale.checks.blend import content
from megatron.flagscale import data
from megatron.flagscale.chips import chip
from megatron.flagscale.forward import PADDING
from megatron.flagscale.metrics.lengths import count_lengths
from megatron.flagscale.sft.dataset import ConversationDataset, ConversationsConfig
from megatron.flagscale.sft.sample import lengths_of


def build_datasets(num_samples: tuple[int, int | None, int], vp_stage: int | None) -> list[Any]:
    """Build the train, validation and test datasets that this rank reads for a chunk of the model."""
    args = get_args()
    config = ConversationsConfig(
        **data.common_config(), no_packing=args.no_packing, content=content(vars(args))
    )
    data.refuse_wrong_data()

    builder = BlendedMegatronDatasetBuilder(
        ConversationDataset, num_samples, lambda: _reads(vp_stage), config
    )
    built: list[Any] = builder.build()
    return built


def get_batch(
    data_iterator: Iterator[dict[str, torch.Tensor]] | None, vp_stage: int | None
) -> dict[str, Any]:
    """Return this rank's part of the next micro-batch (see `megatron.flagscale.data.get_batch`).

    With experts it has the padding too.
    """
    args = get_args()
    own: Iterator[dict[str, torch.Tensor]] | None = None
    lengths: list[int] = []
    padding: torch.Tensor | None = None
    is_first = mpu.is_pipeline_first_stage(ignore_virtual=vp_stage is None, vp_stage=vp_stage)
    if _reads(vp_stage):
        assert data_iterator is not None
        micro_batch = next(data_iterator)
        own, padding = iter([micro_batch]), micro_batch["padding"]
        if is_first:
            lengths = lengths_of(micro_batch["position_ids"], micro_batch["padding"])
    count_lengths(lengths)
    batch = data.get_batch(own, vp_stage, None if args.no_packing else _starts)
    return {**batch, PADDING: _padding_mask(padding, is_first)} if args.num_experts else batch


def _reads(vp_stage: int | None) -> bool:
    """Return whether this rank reads samples for a chunk of the model, and does not get them from another."""
    args = get_args()
    # Each stage looks for documents, or has routers that have to know the padding.
    reads = data.reads_data(vp_stage, is_everywhere=not args.no_packing or bool(args.num_experts))
    return reads and mpu.get_tensor_model_parallel_rank() == 0


def _padding_mask(padding: torch.Tensor | None, is_first: bool) -> torch.Tensor:
    """Return where this rank's part of a micro-batch is padding, `[b, s]`.

    `padding` is the number of tokens of padding per sample; None if this rank gets it from the first one of
    its tensor parallel group. The model itself splits the mask of its first stage over sequence parallel
    ranks (megatron-core 0.19.2, `GPTModel._preprocess`), and that of no other stage.
    """
    args, device = get_args(), chip().device()
    samples = args.micro_batch_size if torch.is_grad_enabled() else args.eval_micro_batch_size
    counts = torch.empty(samples, dtype=torch.int64, device=device) if padding is None else padding.to(device)
    group = mpu.get_tensor_model_parallel_group()
    torch.distributed.broadcast(counts, mpu.get_tensor_model_parallel_src_rank(), group=group)
    whole = torch.arange(args.seq_length, device=device) >= args.seq_length - counts[:, None]
    split = {PADDING: whole}
    split = get_batch_on_this_cp_rank(split, is_hybrid_cp=False, cp_group=mpu.get_context_parallel_group())
    mask: torch.Tensor = split[PADDING]
    if args.sequence_parallel and not is_first:
        mask = mask.chunk(group.size(), dim=1)[group.rank()]
    return mask


def _starts(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the start of each token's conversation: where its position would be 0."""
    positions = batch["position_ids"].cpu()
    return torch.arange(positions.size(1)) - positions
