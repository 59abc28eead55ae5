"""The data of a training from Energon folders, split among its ranks and their `num_workers` processes.

Epochs are clean (see epochs.py), except in a blend by weights, which has none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.energon import WorkerConfig, get_savable_loader
from megatron.energon.flavors.base_dataset import SavableDataset
from megatron.energon.metadataset import load_dataset
from megatron.energon.metadataset.loader_interface import DatasetBlendMode

from energon_flagscale.epochs import CleanEpochs
from energon_flagscale.skipped import SKIPPED, SkippedSamples, WithSkipped, report, usable
from energon_flagscale.state import Place, loader_state, place_of
from flagscale.checks.energon_blend import read_data
from flagscale.checks.loading import too_few
from flagscale.errors import Problem, UserError


@dataclass(frozen=True)
class Readers:
    """Who reads the data, and how: what a reader's place in the data depends on."""

    rank: int
    """The data parallel rank."""
    ranks: int
    workers: int
    """Processes per rank that read; with 0, the rank itself reads."""
    micro_batch_size: int
    shuffle_buffer_size: int = 0
    max_samples_per_sequence: int = 100
    packing_buffer_size: int = 0
    seed: int = 0

    def config(self, noted: SkippedSamples) -> WorkerConfig:
        """Return Energon's description of this rank."""
        return WorkerConfig(
            rank=self.rank,
            world_size=self.ranks,
            num_workers=self.workers,
            seed_offset=self.seed,
            global_error_handler=noted.note,
        )


def training_dataset(path: str, encoder: CleanEpochs, readers: Readers) -> SavableDataset[Any]:
    """Return the endless micro-batches of this rank's part of the `train` split of a folder or a blend.

    Raises:
        UserError: the data is missing or not sound, or a reader would get no sample.
    """
    noted = SkippedSamples()
    config = readers.config(noted)
    found = opened(path, "train", encoder, readers, config, training=True)
    by_weight = found.blend_mode == DatasetBlendMode.DATASET_WEIGHT
    encoder.repeats, encoder.shuffle_buffer_size = not by_weight, readers.shuffle_buffer_size
    dataset = encoder.build_train_datasets(
        datasets=found.datasets,
        worker_config=config,
        batch_size=readers.micro_batch_size,
        packing_buffer_size=readers.packing_buffer_size or None,
        virtual_epoch_length=0,
        shuffle_buffer_size=None,
        blend_mode=found.blend_mode,
        repeat=by_weight,
    )
    return WithSkipped(dataset, noted, config)


def opened(
    path: str, split: str, encoder: Any, readers: Readers, config: WorkerConfig, *, training: bool
) -> Any:
    """Return a split of an Energon folder or blend as Energon loads it.

    Raises:
        UserError: it is not sound, or has fewer samples than readers.
    """
    if wrong := read_data(Path(path), split).wrong:
        raise UserError(Problem(what) for what in wrong)
    further: dict[str, Any] = {}
    if training:
        further = {
            "max_samples_per_sequence": readers.max_samples_per_sequence,
            "shuffle_over_epochs_multiplier": 1,
        }
    found = load_dataset(path).get_datasets(
        training=training,
        split_part=split,
        worker_config=config,
        decoder=encoder.decoder,
        **further,
    )
    samples = sum(len(one.dataset) for one in found.datasets)
    if training and (what := too_few(samples, readers.ranks, readers.workers)):
        raise UserError(f"{path}: the split `{split}` has {what}")
    return found


class TrainingData:
    """An endless iterator over micro-batches that knows its place in the data.

    `place` continues where another run was, with the same number of readers.
    """

    def __init__(
        self,
        dataset: SavableDataset[Any],
        readers: Readers,
        place: Place | None = None,
        max_skipped: int | None = None,
        *,
        reports: bool = True,
    ) -> None:
        """`reports`: whether to print which samples are skipped; other ranks may read the same ones."""
        self.readers = readers
        self._max_skipped, self._reports = max_skipped, reports
        # In the process of the training itself, garbage is collected as the engine decides.
        collects = {} if readers.workers else {"gc_collect_every_n_steps": 0}
        self._loader = get_savable_loader(dataset, **collects)
        # Energon asks for it everywhere; but tiles are not in a form that torch would pin.
        self._loader.pin_memory = False
        self.skipped = place.skipped if place else 0
        self._discarded = self._restore(place) if place else 0
        self._batches: Iterator[dict[str, Any]] | None = None

    def _restore(self, place: Place) -> int:
        """Continue at a place, and return how many micro-batches have to be discarded first."""
        state, discarded = loader_state(place, self.readers.workers)
        if state is None:
            return discarded
        if not self.readers.workers:
            state.micro_batch_size = self.readers.micro_batch_size
        self._loader.restore_state_rank(state)
        if self.readers.workers:
            # Energon 7.4.1 forgets the micro-batches that a reader will discard if the state is saved again
            # before that reader has passed one on: the next run would repeat them.
            offsets = [reader.offset for reader in state.worker_states]
            counters = self._loader._worker_sample_counters
            self._loader._worker_sample_counters = [
                counter + offset for counter, offset in zip(counters, offsets, strict=True)
            ]
        return discarded

    def __iter__(self) -> TrainingData:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._batches is None:
            self._batches = self._begin()
        batch = next(self._batches)
        messages = batch.pop(SKIPPED)
        self.skipped += len(messages)
        if self._reports:
            report(messages)
        check_limit(self.skipped, self._max_skipped)
        return batch

    def _begin(self) -> Iterator[dict[str, Any]]:
        batches = usable(iter(self._loader))
        for _ in range(self._discarded):
            next(batches)
        return batches

    def place(self) -> Place:
        """Return the place after the last micro-batch that was passed on."""
        state = self._loader.save_state_rank()
        while (
            self._batches and self.readers.workers and any(one.state is None for one in state.worker_states)
        ):
            # Energon 7.4.1 also answers for a process that has not restored its state yet, or has none.
            time.sleep(0.01)
            state = self._loader.save_state_rank()
        return place_of(state, self.readers.workers, self.skipped)


def check_limit(skipped: int, limit: int | None) -> None:
    """Raise `UserError` if more samples than `max_skipped_samples` were skipped."""
    if limit is not None and skipped > limit:
        what = f"{skipped} samples could not be used, but `max_skipped_samples` is {limit}"
        raise UserError(f"{what}; the reason of each is in the output")
