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


def evaluations(
    dataset: SavableDataset[Any], batches: int, masked: dict[str, Any], *, reports: bool = True
) -> Iterator[dict[str, Any]]:
    """Yield micro-batches without an end: every `batches` are one evaluation, from the first sample on.

    `masked`: a micro-batch without loss; `reports`: whether to print which samples are skipped.
    """
    # Both as for the training.
    collects = {} if dataset.worker_config.num_workers else {"gc_collect_every_n_steps": 0}
    loader = BasicDataLoader(dataset, **collects)
    loader.pin_memory = False
    while True:
        left = batches
        for batch in usable(iter(loader)):
            messages = batch.pop(SKIPPED)
            if reports:
                report(messages)
            if batch:
                yield batch
                left -= 1
        if reports and left == batches:
            print("flagscale: no sample of the evaluation can be used, so it has no loss", flush=True)
        reports = False
        for _ in range(left):
            yield dict(masked)
