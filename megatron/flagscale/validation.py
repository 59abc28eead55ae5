"""Evaluation of whole validation sets, one or several, each with its own name and interval.

The engine evaluates a whole set with one sample per micro-batch, repeats samples if the ranks do not divide
them, and fails if a rank reads no data. Here each evaluation reads a set from its first sample, in the usual
batches; masked samples fill the last one. So the loss is the same in every layout.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any

import torch

from flagscale.checks.validation import OF_EACH_SET, set_names
from flagscale.errors import Problem, UserError
from flagscale.formats import option_of
from megatron.flagscale.chips import chip
from megatron.flagscale.patching import Patch


def prepare_validation(args: argparse.Namespace) -> None:
    """Complete parsed arguments: the engine's `eval_iters` will become those of each set."""
    args.asked_eval_iters = args.eval_iters
    args.most_eval_iters = None if args.full_validation else args.eval_iters
    if args.multiple_validation_sets and args.most_eval_iters == 0:
        args.multiple_validation_sets = False  # there are no evaluations
    if args.multiple_validation_sets:
        args.full_validation = True


def evaluations(prefix: str, data: Any, iteration: int) -> Iterator[tuple[str, str, Any]]:
    """Yield (split, name of the set, data) of each evaluation that is due, with the arguments set for it.

    `prefix`, `data` and `iteration` are those of the engine's `evaluate_and_print_results`.
    """
    from megatron.training import get_args

    args = get_args()
    # A whole set takes none of the samples that the engine counts, and a test takes none for validation.
    unchanged = {"consumed_valid_samples": args.consumed_valid_samples}
    if "test set" in prefix:
        # As one of several sets it gets a name in TensorBoard and W&B, which else show it as validation.
        named = {"multiple_validation_sets": True, "validation_set_names": ["test"], "full_validation": False}
        with _changed(args, eval_iters=[args.asked_eval_iters], **named, **unchanged):
            yield "test", "", [data]
    elif not args.full_validation:
        yield "validation", "", data
    elif not args.multiple_validation_sets:
        with _changed(args, eval_iters=[args.eval_iters], **unchanged):
            yield "validation", "", data
    else:
        is_last = "validation set" in prefix
        names = args.validation_set_names or _default_names(args)
        for number, name in enumerate(names):
            if is_last or _is_due(args, number, iteration):
                own = {"eval_iters": [args.eval_iters[number]], "validation_set_names": [name]}
                with _changed(args, **own, **unchanged):
                    yield "validation", name, [_of_set(args, data, number)]


def _is_due(args: argparse.Namespace, number: int, iteration: int) -> bool:
    intervals = args.validation_set_intervals
    return not intervals or iteration % intervals[number] == 0


def _default_names(args: argparse.Namespace) -> list[str]:
    from megatron.training.utils import get_blend_and_blend_per_split

    per_split = get_blend_and_blend_per_split(args)[1]
    if per_split and per_split[1] and len(per_split[1][0]) == len(args.eval_iters):
        return set_names(per_split[1][0])
    return [str(number) for number in range(len(args.eval_iters))]  # a program's own data sets


def _of_set(args: argparse.Namespace, data: Any, number: int) -> Any:
    """Return the iterator of one set; an interleaved pipeline has one per chunk of the model."""
    if args.virtual_pipeline_model_parallel_size is None:
        return data[number]
    return [of_chunk[number] for of_chunk in data]


@contextmanager
def _changed(args: argparse.Namespace, **values: Any) -> Iterator[None]:
    before = {name: getattr(args, name) for name in values}
    vars(args).update(values)
    try:
        yield
    finally:
        vars(args).update(before)


class WholeSet:
    """A validation set as the engine's loader: one pass over it is one evaluation; empty without data."""

    def __init__(self, size: int, loader: torch.utils.data.DataLoader[Any] | None) -> None:
        from megatron.core import mpu
        from megatron.training import get_args

        args = get_args()
        self._iterations: int = ceil(size / args.eval_global_batch_size)
        if args.most_eval_iters is not None:
            self._iterations = min(self._iterations, int(args.most_eval_iters))
        self._loader = None
        if loader is not None:
            rank = mpu.get_data_parallel_rank()
            self._loader = torch.utils.data.DataLoader(
                _Filled(loader.dataset, size),
                batch_sampler=batches(self._iterations, args, rank),
                num_workers=loader.num_workers,
                pin_memory=loader.pin_memory,
                collate_fn=loader.collate_fn,
                worker_init_fn=loader.worker_init_fn,
                persistent_workers=loader.num_workers > 0,
            )

    def __len__(self) -> int:
        """Return the number of iterations of an evaluation; each of them takes a whole global batch."""
        return self._iterations

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader or ())


def batches(iterations: int, args: argparse.Namespace, rank: int) -> list[list[int]]:
    """Return the samples of each micro-batch of a data parallel rank, in the order of usual evaluations."""
    size, ranks = args.eval_micro_batch_size, args.data_parallel_size
    first = range(rank * size, iterations * args.eval_global_batch_size, ranks * size)
    return [[*range(start, start + size)] for start in first]


class _Filled(torch.utils.data.Dataset[Any]):
    """A data set with masked samples after its end; those of a program without `loss_mask` count again."""

    def __init__(self, samples: Any, size: int) -> None:
        self._samples, self._size = samples, size

    def __getitem__(self, number: int) -> Any:
        if number < self._size:
            return self._samples[number]
        sample = self._samples[0]
        if "loss_mask" not in sample:
            return sample
        return {**sample, "loss_mask": torch.zeros_like(sample["loss_mask"])}


def _whole_sets(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def build_train_valid_test_data_loaders(provider: Any) -> tuple[Any, Any, Any]:
        from megatron.training import get_args

        args = get_args()
        # The engine replaced it if this is not the first chunk of the model.
        args.eval_iters = args.asked_eval_iters
        train, valid, test = original(provider)
        if args.full_validation and args.dataloader_type != "external":
            loaders = valid or []
            sizes = _largest([0 if loader is None else len(loader.dataset) for loader in loaders])
            loaders = loaders or [None] * len(sizes)
            _require_one_per_set(args, len(sizes))
            valid = [WholeSet(size, loader) for size, loader in zip(sizes, loaders, strict=True)]
        if not args.full_validation and not args.eval_iters:
            # Nobody will read them: without workers, their iterators start no processes.
            for loader in (*(valid or ()), test):
                if isinstance(loader, torch.utils.data.DataLoader):
                    loader.num_workers = 0
        return train, valid, test

    return build_train_valid_test_data_loaders


def _require_one_per_set(args: argparse.Namespace, sets: int) -> None:
    """Raise `UserError` for lists that do not fit the sets; the launcher may not know how many there are."""
    for name in OF_EACH_SET:
        given = getattr(args, name)
        if args.multiple_validation_sets and given and len(given) != sets:
            what = f"{len(given)} values for {sets} validation sets; give one for each"
            raise UserError([Problem(what, option_of(name))])


def _largest(sizes: Sequence[int]) -> list[int]:
    """Return the elementwise maximum over all ranks; a rank without data may have no sizes."""
    count = torch.tensor([len(sizes)], device=chip().device())
    torch.distributed.all_reduce(count, op=torch.distributed.ReduceOp.MAX)
    found = torch.zeros(int(count.item()), dtype=torch.long, device=chip().device())
    found[: len(sizes)] = torch.tensor(sizes, dtype=torch.long)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    largest: list[int] = found.tolist()
    return largest


PATCHES = (
    Patch(
        "megatron.training.training:build_train_valid_test_data_loaders",
        _whole_sets,
        "Full validation fails on ranks without data, and its result depends on the layout. For sets "
        "that are never evaluated, it starts processes that load samples.",
        "worker",
        until="full validation works in every layout, and for several sets with eval_iters",
    ),
)
