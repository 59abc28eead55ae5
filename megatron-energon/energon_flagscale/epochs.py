"""Clean epochs: a reader passes on each sample of its part once before it begins again.

Energon 7.4.1 repeats the data before it is shuffled, so that its buffer holds samples of two epochs: of 32
samples, the first 32 that it passes on are 27 different ones. Here it is repeated behind the buffer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron.energon import TaskEncoder
from megatron.energon.flavors.base_dataset import SavableDataset
from megatron.energon.worker import WorkerConfig
from megatron.energon.wrappers import RepeatDataset, ShuffleBufferDataset


class CleanEpochs(TaskEncoder[Any, Any, Any, Any]):
    """A task encoder that shuffles and repeats its data, in this order."""

    shuffle_buffer_size = 0
    repeats = False

    def build_encode_sample(
        self, dataset: SavableDataset[Any], *, worker_config: WorkerConfig
    ) -> SavableDataset[Any]:
        """Return the encoded samples of a dataset that neither shuffles nor repeats."""
        if self.shuffle_buffer_size > 1:
            dataset = EpochShuffle(dataset, self.shuffle_buffer_size, worker_config=worker_config)
        if self.repeats:
            dataset = RepeatDataset(dataset, worker_config=worker_config)
        return super().build_encode_sample(dataset, worker_config=worker_config)


class EpochShuffle(ShuffleBufferDataset[Any]):
    """Energon's shuffle buffer, whose state also says that the epoch's last samples are in the buffer.

    Energon's own fills the buffer with samples of the next epoch if it is restored there.
    """

    _savable_fields = (*ShuffleBufferDataset._savable_fields, "_has_all")

    def reset_state_own(self) -> None:
        super().reset_state_own()
        self._has_all = False

    def __iter__(self) -> Iterator[Any]:
        buffer, random = self._active_buffer, self._worker_rng
        buffer.worker_start()
        further = buffer.append_iter()
        while not self._has_all:
            while buffer.len_worker() < self.size and not self._has_all:
                self._has_all = next(further, None) is None
            if not self._has_all:
                yield buffer.pop(random.randbelow(buffer.len_worker()))
        while buffer.len_worker():
            yield buffer.pop(random.randbelow(buffer.len_worker()))
        self._has_all = False
