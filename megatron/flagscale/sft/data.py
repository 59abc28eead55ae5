"""Data of instruction tuning: the datasets of conversations, and the batch of one micro-step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.training import get_args, get_tokenizer
from megatron.training.utils import get_blend_and_blend_per_split

from flagscale.checks.blend import content
from megatron.flagscale import data
from megatron.flagscale.metrics.lengths import count_lengths
from megatron.flagscale.sft.dataset import ConversationDataset, ConversationsConfig
from megatron.flagscale.sft.sample import lengths_of


def build_datasets(num_samples: tuple[int, int | None, int], vp_stage: int | None) -> list[Any]:
    """Build the train, validation and test datasets that this rank reads for a chunk of the model."""
    args = get_args()
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    config = ConversationsConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        blend=blend,
        blend_per_split=blend_per_split,
        split=args.split,
        multiple_validation_sets=args.multiple_validation_sets,
        full_validation=args.full_validation,
        num_dataset_builder_threads=args.num_dataset_builder_threads,
        path_to_cache=args.data_cache_path,
        mmap_bin_files=args.mmap_bin_files,
        tokenizer=get_tokenizer(),
        mid_level_dataset_surplus=args.mid_level_dataset_surplus,
        no_packing=args.no_packing,
        content=content(vars(args)),
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
    """Return this rank's part of the next micro-batch (see `megatron.flagscale.data.get_batch`)."""
    own: Iterator[dict[str, torch.Tensor]] | None = None
    lengths: list[int] = []
    if _reads(vp_stage):
        assert data_iterator is not None
        micro_batch = next(data_iterator)
        own = iter([micro_batch])
        if mpu.is_pipeline_first_stage(ignore_virtual=vp_stage is None, vp_stage=vp_stage):
            lengths = lengths_of(micro_batch["position_ids"], micro_batch["padding"])
    count_lengths(lengths)
    return data.get_batch(own, vp_stage, None if get_args().no_packing else _starts)


def _reads(vp_stage: int | None) -> bool:
    """Return whether this rank reads samples for a chunk of the model, and does not get them from another."""
    reads = data.reads_data(vp_stage, is_everywhere=not get_args().no_packing)
    return reads and mpu.get_tensor_model_parallel_rank() == 0


def _starts(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the start of each token's conversation: where its position would be 0."""
    positions = batch["position_ids"].cpu()
    return torch.arange(positions.size(1)) - positions
