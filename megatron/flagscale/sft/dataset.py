"""The engine's dataset of conversations: pairs of tokens and loss masks, packed into samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_config import BlendedMegatronDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.megatron_dataset import MegatronDataset
from megatron.core.datasets.utils import Split
from numpy.typing import NDArray

from flagscale.checks.mask_files import mask_prefix
from megatron.flagscale.sft.packing import Packing, one_each, packed, shuffled
from megatron.flagscale.sft.sample import sample_of

_EPOCHS = 4
"""Orders of epochs that are kept: readers are in one epoch, or at the border of two."""


@dataclass
class ConversationsConfig(BlendedMegatronDatasetConfig):
    """What the datasets of a training have in common."""

    no_packing: bool = False
    content: str = ""
    """What identifies the files, so that the engine's index of a blend belongs to them."""


@dataclass(frozen=True)
class TextsAndMasks:
    """The tokens and the loss masks of conversations, one per document."""

    texts: IndexedDataset
    masks: IndexedDataset


class ConversationDataset(MegatronDataset):
    """Samples of whole conversations, in another order and with other neighbours in each epoch.

    The sample at a place depends on the data, `seq_length` and the seed alone: neither on the layout nor on
    the length of the training, so a resumed run continues with the next one.
    """

    def __init__(
        self,
        pairs: TextsAndMasks,
        prefix: str,
        indices: NDArray[np.int32],
        num_samples: int | None,
        split: Split,
        config: ConversationsConfig,
    ) -> None:
        super().__init__(pairs, prefix, indices, num_samples, split, config)
        self._lengths = pairs.texts.sequence_lengths[indices]
        pack = one_each(self._lengths) if config.no_packing else packed(self._lengths, config.sequence_length)
        self._packing = pack
        self._epochs: dict[int, Packing] = {}

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: TextsAndMasks) -> int:
        return int(low_level_dataset.texts.sequence_lengths.shape[0])

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: ConversationsConfig) -> TextsAndMasks:
        paths = dataset_path, str(mask_prefix(Path(dataset_path)))
        return TextsAndMasks(*(IndexedDataset(path, mmap=config.mmap_bin_files) for path in paths))

    @staticmethod
    def _key_config_attributes() -> list[str]:
        return [*MegatronDataset._key_config_attributes(), "content", "no_packing"]

    def __len__(self) -> int:
        """Return the number of samples of as many whole epochs as are needed."""
        of_epoch = len(self._packing)
        wanted = of_epoch if self.num_samples is None else self.num_samples
        return of_epoch * max(1, -(-wanted // of_epoch))

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        epoch, place = divmod(int(number), len(self._packing))
        chosen = self.indices[self._order(epoch).of_sequence(place)]
        conversations = ((self.dataset.texts[one], self.dataset.masks[one]) for one in chosen)
        return sample_of(conversations, self.config.sequence_length)

    def _order(self, epoch: int) -> Packing:
        if epoch not in self._epochs:
            while len(self._epochs) >= _EPOCHS:
                del self._epochs[min(self._epochs)]
            seed = self.config.random_seed, epoch
            self._epochs[epoch] = shuffled(self._packing, self._lengths, seed)
        return self._epochs[epoch]

    @property
    def fill(self) -> float:
        """The share of all samples that is not padding."""
        return float(self._lengths.sum() / (len(self._packing) * self.config.sequence_length))
