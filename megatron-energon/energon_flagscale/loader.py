"""The data of a training with pictures, as `megatron.flagscale.train_llava` asks for it on each rank.

The loader's place in the data is kept in each checkpoint (see state.py), and the number of samples that could
not be used is among the metrics (`skipped_samples`).
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from megatron.core import mpu
from megatron.energon import stateless
from megatron.training import get_tokenizer

from energon_flagscale import state
from energon_flagscale.encoder import Encoded, Encoder, Sequences
from energon_flagscale.epochs import CleanEpochs
from energon_flagscale.training_data import Readers, TrainingData, check_limit, training_dataset
from energon_flagscale.validation_data import evaluations, validation_dataset
from flagscale.checks.differences import changed_data
from flagscale.checks.energon_blend import has_split
from flagscale.checks.loading import ORDER, RANKS
from flagscale.errors import UserError
from flagscale.run.checkpoints import folder_of, read_arguments
from flagscale.vision.arguments import vision_of
from megatron.flagscale.checkpoint.additions import add_to_checkpoints
from megatron.flagscale.checkpoint.arguments import record_of
from megatron.flagscale.chips import chip
from megatron.flagscale.metrics.patches import add_figure

if TYPE_CHECKING:
    from megatron.flagscale.vision.reading import Reading


class _Encoder(CleanEpochs, Encoder):
    """The encoder of conversations with pictures, for one set of data."""

    micro_batch_size = 0
    """How many sequences a micro-batch has at least; those without a sample are masked."""

    @stateless
    def batch(self, samples: list[Encoded]) -> dict[str, Any]:
        missing = self.micro_batch_size - len(samples)
        batch: dict[str, Any] = super().batch([*samples, *[self._empty()] * missing])
        return batch

    def _empty(self) -> Encoded:
        ids, nothing = np.array([self._pad]), np.zeros(1, bool)
        named: dict[str, Any] = {"__key__": "", "__restore_key__": ()}
        return Encoded(
            **named, keys=(), ids=ids, is_answer=nothing, lengths=(1,), items=(), media=(), tiles=[]
        )


def datasets(args: argparse.Namespace, reading: Reading | None) -> tuple[Any, Any]:
    """Return what a rank (or a chunk of it) reads: the training and the validation data.

    None if it reads nothing (`reading` is None), and for the validation if there is no such data, which also
    sets `eval_iters` to 0. Every rank has to call it.

    Raises:
        UserError: data is missing or not sound, or the checkpoint does not hold a place that fits.
    """
    _join(args.max_skipped_samples)
    if not _validation_paths(args):
        args.eval_iters = 0
    if reading is None:
        return None, None
    readers = Readers(
        rank=reading.rank,
        ranks=reading.ranks,
        workers=args.num_workers,
        micro_batch_size=args.micro_batch_size,
        shuffle_buffer_size=args.shuffle_buffer_size,
        max_samples_per_sequence=args.max_samples_per_sequence,
        packing_buffer_size=args.packing_buffer_size,
        seed=args.seed,
    )
    return _training(args, reading, readers), _validation(args, reading, readers)


def _training(args: argparse.Namespace, reading: Reading, readers: Readers) -> TrainingData:
    is_first, encoder = _is_first(reading), _encoder(args, reading)
    if is_first and not reading.rank:
        for notice in encoder.template.notices():
            print(f"flagscale: {notice} (`chat_template` chooses another)", flush=True)
    dataset = training_dataset(args.data_path[0], encoder, readers)
    place = _place(args, readers)
    data = TrainingData(dataset, readers, place, args.max_skipped_samples, reports=is_first)
    if is_first:
        _saved.append(data)
    return data


def _validation(
    args: argparse.Namespace, reading: Reading, readers: Readers
) -> Iterator[dict[str, Any]] | None:
    if not args.eval_iters:
        return None
    of_each = args.eval_global_batch_size // (args.eval_micro_batch_size * readers.ranks)
    batches, size = args.eval_iters * of_each, args.eval_micro_batch_size
    encoder = _encoder(args, reading)
    encoder.micro_batch_size = size
    dataset = validation_dataset(_validation_paths(args), encoder, readers, size, batches)
    return evaluations(dataset, batches, encoder.batch([]), reports=_is_first(reading))


def _is_first(reading: Reading) -> bool:
    """Return whether this rank speaks for all that read the same samples."""
    return reading.has_pictures and mpu.get_context_parallel_rank() == 0


def _encoder(args: argparse.Namespace, reading: Reading) -> _Encoder:
    return _Encoder(
        get_tokenizer()._tokenizer.tokenizer,
        vision_of(vars(args)),
        Sequences(args.seq_length, reading.multiple, is_fixed=reading.length is not None),
        args.chat_template,
        makes_tiles=reading.has_pictures,
        packs=bool(args.packing_buffer_size),
    )


def _validation_paths(args: argparse.Namespace) -> list[str]:
    """Return the folders and blends of the validation; none if there is no such data."""
    if args.valid_path:
        return list(args.valid_path)
    return [path for path in args.data_path if has_split(Path(path), "val")]


def _place(args: argparse.Namespace, readers: Readers) -> state.Place | None:
    """Return where the readers of a rank were when the checkpoint was saved that this run continues."""
    if not args.iteration:
        return None
    checkpoint = Path(args.load) / folder_of(args.iteration)
    saved = read_arguments(checkpoint)
    if saved is None or ORDER[0] not in saved or RANKS not in saved:
        what = f"{checkpoint} has no place of a loader of pictures: it was saved by another program"
        raise UserError(f"{what}. With `finetune: true` a new training starts with its weights.")
    if changed_data(saved, record_of(args)):  # which was reported when the checkpoint was chosen
        return None
    return state.read(checkpoint, saved[RANKS], readers.rank, readers.ranks)


# The data of this rank whose place is saved: others may read the same samples, but not their pictures.
_saved: list[TrainingData] = []


@functools.cache
def _join(limit: int | None) -> None:
    """Have this rank take part in saving the places of all, and in counting what all have skipped."""

    def write(checkpoint: Path) -> None:
        for data in _saved:
            state.write(checkpoint, data.readers.rank, data.place())

    def skipped() -> int:
        total = torch.tensor(sum(data.skipped for data in _saved), device=chip().device())
        torch.distributed.all_reduce(total)
        check_limit(int(total), limit)
        return int(total)

    add_to_checkpoints(write)
    add_figure("skipped_samples", skipped)
