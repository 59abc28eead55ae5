"""The data of evaluations: each reads the same micro-batches, as many as the engine takes.

The parts of the ranks may differ by a sample, and samples may be skipped, but every rank has to take part
in every step. So whoever has no more samples passes on masked ones, which do not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from megatron.energon import get_loader
from megatron.energon.flavors.base_dataset import SavableDataset

from energon_flagscale.skipped import SKIPPED, SkippedSamples, WithSkipped, report, usable
from energon_flagscale.training_data import Readers, opened


def validation_dataset(
    paths: Sequence[str], encoder: Any, readers: Readers, micro_batch_size: int, batches: int
) -> SavableDataset[Any]:
    """Return this rank's part of the `val` split of folders and blends, one after another, at most `batches`.

    Raises:
        UserError: the data is missing or not sound.
    """
    noted = SkippedSamples()
    config = readers.config(noted)
    found = [opened(path, "val", encoder, readers, config, training=False) for path in paths]
    dataset = encoder.build_val_datasets(
        datasets=[*chain.from_iterable(one.datasets for one in found)],
        worker_config=config,
        batch_size=micro_batch_size,
        packing_buffer_size=readers.packing_buffer_size or None,
        limit=batches,
    )
    return WithSkipped(dataset, noted, config)


class ValidationData:
    """An endless iterator: every `batches` micro-batches it begins again with the first sample."""

    def __init__(self, dataset: SavableDataset[Any], batches: int, masked: dict[str, Any]) -> None:
        """`masked`: a micro-batch without loss."""
        # Both as for the training.
        collects = {} if dataset.worker_config.num_workers else {"gc_collect_every_n_steps": 0}
        self._loader = get_loader(dataset, **collects)
        self._loader.pin_memory = False
        self._batches, self._masked = batches, masked
        self._endless = self._evaluations()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Return an iterator that begins with the first sample."""
        return self._evaluations()

    def __next__(self) -> dict[str, Any]:
        return next(self._endless)

    def _evaluations(self) -> Iterator[dict[str, Any]]:
        while True:
            found = 0
            for batch in usable(iter(self._loader)):
                found += 1
                report(batch.pop(SKIPPED))
                yield batch
            for _ in range(self._batches - found):
                yield dict(self._masked)
