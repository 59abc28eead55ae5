"""Training data: GPT datasets from `.bin/.idx` files or mock data, and the batch of one micro-step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
from megatron.core.transformer.multi_token_prediction import mtp_on_this_rank
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout
from megatron.core.utils import get_batch_on_this_cp_rank, get_batch_on_this_tp_rank
from megatron.training import get_args, get_tokenizer
from megatron.training.utils import get_blend_and_blend_per_split, is_first_or_last_pipeline_stage

from flagscale.checks.blend import content
from flagscale.checks.mask_files import SEPARATE
from flagscale.errors import UserError
from megatron.flagscale.checks import data_problems
from megatron.flagscale.chips import chip
from megatron.flagscale.datasets import ContentGPTDataset, SeparateMaskDataset
from megatron.flagscale.layers.documents import document_starts

_FIELDS = ("tokens", "labels", "loss_mask", "attention_mask", "position_ids")


def build_datasets(num_samples: tuple[int, int | None, int], vp_stage: int | None = None) -> list[Any]:
    """Build the train, validation and test datasets; passed to `pretrain` as its datasets provider."""
    args = get_args()
    config = GPTDatasetConfig(
        **common_config(),
        reset_position_ids=args.reset_position_ids,
        reset_attention_mask=args.reset_attention_mask,
        eod_mask_loss=args.eod_mask_loss,
        create_attention_mask=args.create_attention_mask_in_dataloader,
        object_storage_cache_path=args.object_storage_cache_path,
        allow_ambiguous_pad_tokens=args.allow_ambiguous_pad_tokens,
        fast_cache_load=args.dataloader_fast_cache_load,
        defer_npy_index_mmap=args.dataloader_defer_npy_index_mmap,
        context_parallel_size=args.context_parallel_size,
        data_parallel_size=args.data_parallel_size,
    )
    config.content = content(vars(args))
    refuse_wrong_data()
    dataset_type: type[GPTDataset] = SeparateMaskDataset if getattr(args, SEPARATE) else ContentGPTDataset
    if args.mock_data:
        dataset_type = MockGPTDataset
    is_everywhere = args.reset_attention_mask

    def has_data() -> bool:
        return reads_data(vp_stage, is_everywhere) and mpu.get_tensor_model_parallel_rank() == 0

    datasets: list[Any] = BlendedMegatronDatasetBuilder(dataset_type, num_samples, has_data, config).build()
    return datasets


# Every rank has to build them: the first one writes the sample index and the others wait for it.
build_datasets.is_distributed = True  # type: ignore[attr-defined]


def common_config() -> dict[str, Any]:
    """Return the settings of the engine's configuration that datasets of every kind need."""
    args = get_args()
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    return {
        "random_seed": args.seed,
        "sequence_length": args.seq_length,
        "blend": blend,
        "blend_per_split": blend_per_split,
        "split": args.split,
        "multiple_validation_sets": args.multiple_validation_sets,
        "full_validation": args.full_validation,
        "num_dataset_builder_threads": args.num_dataset_builder_threads,
        "path_to_cache": args.data_cache_path,
        "mmap_bin_files": args.mmap_bin_files,
        "mid_level_dataset_surplus": args.mid_level_dataset_surplus,
        "tokenizer": get_tokenizer(),
    }


def refuse_wrong_data() -> None:
    """Raise `UserError` if the data does not fit the tokenizer; one rank of each host checks it."""
    args = get_args()
    if int(os.environ.get("LOCAL_RANK", 0)) == 0 and (problems := data_problems(vars(args), get_tokenizer())):
        raise UserError(problems)


def reads_data(vp_stage: int | None, is_everywhere: bool) -> bool:
    """Return whether a stage needs batches: with tokens or labels, or all of them if documents are masked."""
    is_end = bool(is_first_or_last_pipeline_stage(vp_stage))
    return is_end or _has_heads(vp_stage) or is_everywhere


def _has_heads(vp_stage: int | None) -> bool:
    """Return whether a stage has the heads of multi-token prediction, which read tokens and labels."""
    args = get_args()
    layout = args.pipeline_model_parallel_layout
    if layout is not None:
        layout = PipelineParallelLayerLayout.from_str(layout, args.pipeline_model_parallel_size)
    return bool(mtp_on_this_rank(layout, args.mtp_num_layers, vp_stage is None, vp_stage))


StartsOf = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
"""Finds the start of each token's document in a micro-batch of whole samples: `[b, s]` on the host."""


def get_batch(
    data_iterator: Iterator[dict[str, torch.Tensor]] | None,
    vp_stage: int | None,
    starts_of: StartsOf | None = None,
) -> dict[str, Any]:
    """Return this rank's part of the next micro-batch; all values are None if its stage reads no data.

    With `starts_of`, every stage reads it, and attention stays within the documents that it finds. By default
    documents are masked with `reset_attention_mask` and end where the tokenizer says.
    """
    args = get_args()
    is_everywhere = starts_of is not None or args.reset_attention_mask
    if not reads_data(vp_stage, is_everywhere):
        return dict.fromkeys(_FIELDS)
    if starts_of is None and args.reset_attention_mask and args.transformer_impl == "torch":
        starts_of = _after_ends
    tp_group = mpu.get_tensor_model_parallel_group()
    batch: dict[str, Any] = {}
    if mpu.get_tensor_model_parallel_rank() == 0:
        assert data_iterator is not None
        sample = next(data_iterator)
        device = chip().device()
        batch = dict.fromkeys(_FIELDS)
        batch |= {name: sample[name].to(device, non_blocking=True) for name in _FIELDS if name in sample}
    batch = get_batch_on_this_tp_rank(
        batch,
        has_cu_seqlens=False,
        is_hybrid_cp=False,
        create_attention_mask_in_dataloader=args.create_attention_mask_in_dataloader,
        broadcast_src_rank=mpu.get_tensor_model_parallel_src_rank(),
        broadcast_group=tp_group,
        cp_size=args.context_parallel_size,
        tp_rank=mpu.get_tensor_model_parallel_rank(),
        micro_batch_size=args.micro_batch_size if torch.is_grad_enabled() else args.eval_micro_batch_size,
        seq_length=args.seq_length,
        mtp_on_this_rank=_has_heads(vp_stage),
        # Documents are found in the batch, so every stage gets all of it, as in a pipeline of one stage.
        pipeline_model_parallel_size=1 if is_everywhere else args.pipeline_model_parallel_size,
        is_pipeline_first_stage=mpu.is_pipeline_first_stage(
            ignore_virtual=vp_stage is None, vp_stage=vp_stage
        ),
        is_pipeline_last_stage=mpu.is_pipeline_last_stage(ignore_virtual=vp_stage is None, vp_stage=vp_stage),
    )
    starts = None if starts_of is None else starts_of(batch)
    batch = get_batch_on_this_cp_rank(batch, is_hybrid_cp=False, cp_group=mpu.get_context_parallel_group())
    if starts is not None:
        batch["attention_mask"] = starts
    return {name: batch[name] for name in _FIELDS}


def _after_ends(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return document_starts(batch["tokens"], get_tokenizer().eod)
