"""GPT datasets of `.bin/.idx` pairs: the engine's, and one whose loss masks are in a pair of their own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from megatron.core.datasets.gpt_dataset import GPTDataset
from megatron.core.datasets.indexed_dataset import IndexedDataset

from flagscale.checks.mask_files import has_masks, mask_prefix


class ContentGPTDataset(GPTDataset):
    """The engine's dataset, whose cached sample index also belongs to the content of the data.

    The engine names a cache after the configuration alone, so it would read a corpus that was built again
    under the same prefix by the index of the old one.
    """

    @staticmethod
    def _key_config_attributes() -> list[str]:
        return [*GPTDataset._key_config_attributes(), "content"]


class SeparateMaskDataset(ContentGPTDataset):
    """The same samples, whose loss masks are multiplied with those beside the text, if there are any.

    FlagScale v0.6.0 put them in the place of the sample's mask (flagscale/datasets/sft_dataset.py), so that
    padding and, with `eod_mask_loss`, ends of documents counted if the file said so.
    """

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        self._masks: GPTDataset | None = None
        if has_masks(Path(self.dataset_path)):
            # The same documents, offsets and order, read from the other pair.
            self._masks = copy.copy(self)
            self._masks.dataset = IndexedDataset(
                str(mask_prefix(Path(self.dataset_path))), mmap=self.config.mmap_bin_files
            )

    def __getitem__(self, number: int | None) -> dict[str, torch.Tensor]:
        sample: dict[str, torch.Tensor] = super().__getitem__(number)
        if self._masks is not None:
            masks, *_ = self._masks._query_document_sample_shuffle_indices(number or 0)
            # The mask of a token belongs to the position that predicts it.
            learnt = torch.from_numpy(masks != 0)[1 : 1 + len(sample["loss_mask"])]
            sample["loss_mask"] = sample["loss_mask"] * learnt
        return sample
