"""The data of evaluations: each reads the same micro-batches, as many as the engine takes.

The parts of the ranks may differ by a sample, and samples may be skipped, but every rank has to take part
in every step. So whoever has no more samples passes on masked ones, which do not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from megatron.energon.flavors.base_dataset import SavableDataset
from megatron.energon.savable_loader import BasicDataLoader

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
    """Micro-batches of evaluations: each `iter()` is one of `batches`, from the first sample on."""

    def __init__(
        self, dataset: SavableDataset[Any], batches: int, masked: dict[str, Any], *, reports: bool = True
    ) -> None:
        """`masked`: a micro-batch without loss; `reports`: whether to print which samples are skipped."""
        # Both as for the training.
        collects = {} if dataset.worker_config.num_workers else {"gc_collect_every_n_steps": 0}
        self._loader = BasicDataLoader(dataset, **collects)
        self._loader.pin_memory = False
        self._batches, self._masked, self._reports = batches, masked, reports

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches, left = usable(iter(self._loader)), self._batches
        batch = next(batches, None)
        while batch is not None:
            # Read on first: a loader that was not read to its end would continue there.
            following = next(batches, None)
            messages = batch.pop(SKIPPED)
            if self._reports:
                report(messages)
            yield batch
            batch, left = following, left - 1
        self._reports = False
        for _ in range(left):
            yield dict(self._masked)
