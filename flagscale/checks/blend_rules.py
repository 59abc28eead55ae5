"""Rules for lists of data and the splits that they fill.

They are those of megatron-core 0.19.2 (`core/datasets/blended_megatron_dataset_builder.py`), which checks few
of them before the ranks have started.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flagscale.checks import indexed
from flagscale.checks.blend import (
    DEFAULT_SPLIT,
    LIST_PER_SPLIT,
    NAMES,
    ONE_SET,
    TRAINING,
    Blend,
    blends,
    parse,
    read_lists,
    shares,
)
from flagscale.checks.schedule import DEFAULT_EVAL_INTERVAL, unit_of
from flagscale.checks.sft import is_instruction_tuning, samples_of
from flagscale.errors import Violation

READ = (
    *("split", "seq_length", "train_iters", "train_samples", "global_batch_size", "micro_batch_size"),
    *("eval_iters", "eval_interval", "full_validation", "multiple_validation_sets", "dataloader_type"),
    *(
        "phase_transition_iterations",
        "mock_data",
        "eval_global_batch_size",
        "start_eval_at_iter",
        "skip_train",
    ),
)
"""The arguments (by dest) besides `blend.NAMES` that these rules read."""


def list_violations(values: Mapping[str, Any], cwd: Path = Path()) -> Iterator[Violation]:
    """Yield each file of a list of data that cannot be read."""
    yield from read_lists(values, cwd)[1]


def blend_violations(values: Mapping[str, Any], cwd: Path = Path()) -> Iterator[Violation]:
    """Yield every violation in the lists of data; the data itself is not opened."""
    given = [name for name in NAMES if values.get(name)]
    for name in NAMES:
        if values.get(name) == []:
            yield name, f"`{name}` is an empty list: remove the key"
    if len([name for name in given if name in ONE_SET]) > 1:
        yield "data_args_path", "give `data_path` or `data_args_path`, not both"
    per_split = [name for name in given if name not in ONE_SET]
    if LIST_PER_SPLIT in per_split and len(per_split) > 1:
        yield LIST_PER_SPLIT, f"give `{LIST_PER_SPLIT}` or `{per_split[0]}`, not both"
    if per_split and len(per_split) < len(given):
        one = next(name for name in given if name in ONE_SET)
        yield per_split[0], f"the engine would ignore `{per_split[0]}` beside `{one}`: give one of them"
    elif per_split and values.get("split"):
        yield "split", f"`split` divides one set of data and cannot be combined with `{per_split[0]}`"
    elif given == ["data_args_path"] and not values.get("split"):
        yield "split", "`data_args_path` needs `split`, such as 98,1,1: the engine has no default for it"
    if values.get("split") and not per_split:
        try:
            shares(str(values["split"]))
        except ValueError as error:
            yield "split", str(error)
    yield from _without_training(values, given)
    for (argument, split), words in read_lists(values, cwd)[0].items():
        try:
            _, weights = parse(words)
        except ValueError as error:
            yield argument, str(error)
            continue
        for weight in weights or ():
            if not 0 < weight < math.inf:
                yield argument, f"a weight must be a number above 0, not {weight:g}"
        is_whole = values.get("full_validation") and not values.get("multiple_validation_sets")
        if weights and is_whole and (split == "valid" or argument in ONE_SET):
            yield argument, "with `full_validation` validation data cannot have weights: remove them"


def _without_training(values: Mapping[str, Any], given: Sequence[str]) -> Iterator[Violation]:
    """Yield that no data is left for the training, which the engine then ends at once, as a success."""
    if values.get("skip_train") or not given:
        return
    if not any(name in TRAINING for name in given):
        yield given[0], f"`{given[0]}` is given, but no `train_data_path`: the training has no data"
    elif any(name in ONE_SET for name in given) and values.get("split"):
        with suppress(ValueError):
            if shares(str(values["split"]))[0] is None:
                yield (
                    "split",
                    f"`split: {values['split']}` leaves the training, which comes first, no data",
                )


def size_violations(values: Mapping[str, Any], cwd: Path = Path()) -> Iterator[Violation]:
    """Yield the splits that the files of data (all sound) cannot fill."""
    for blend in blends(values, cwd):
        empty = False
        for prefix in blend.files(cwd):
            begin, end = blend.sequences(prefix)
            if indexed.tokens_between(prefix, begin, end) == 0:
                empty = True
                yield blend.argument, _empty(blend, prefix, values)
        if not empty and (what := _shortage(blend, values, cwd)):
            yield blend.argument, what


def _empty(blend: Blend, prefix: Path, values: Mapping[str, Any]) -> str:
    count = indexed.summary(prefix).sequences
    split = values.get("split") or f"{DEFAULT_SPLIT} (the default)"
    if blend.argument not in ONE_SET:
        return f"{prefix}: contains no tokens"
    what = f"{prefix}: the {blend.split} split of {split} gets no document of the {count} that it holds"
    return f"{what}; set its share in `split` to 0, or larger"


def _shortage(blend: Blend, values: Mapping[str, Any], cwd: Path) -> str:
    """Return why a blend without weights, which is read only once, is too short; "" if it is long enough."""
    wanted = _wanted_samples(blend.split, values)
    has_sets = blend.split == "valid" and values.get("multiple_validation_sets")
    files = blend.files(cwd)
    is_repeated = blend.weights is not None or len(blend.prefixes) == 1
    if wanted is None or has_sets or is_repeated or len(files) < len(blend.prefixes):
        return ""
    found = sum(_samples(blend, prefix, values) for prefix in files)
    if found >= wanted:
        return ""
    return (
        f"the {blend.split} split has {found:,} samples of {values['seq_length']} tokens, but the job "
        f"reads {wanted:,}: prefixes without weights are read only once; give each a weight "
        "(`[1, PREFIX, 1, PREFIX]`) to repeat them"
    )


def _samples(blend: Blend, prefix: Path, values: Mapping[str, Any]) -> int:
    """Return how many samples a split draws from a prefix in one pass."""
    begin, end = blend.sequences(prefix)
    if is_instruction_tuning(values):
        return samples_of(indexed.lengths(prefix)[begin:end], values)
    return int((indexed.tokens_between(prefix, begin, end) - 1) // values["seq_length"])


def _wanted_samples(split: str, values: Mapping[str, Any]) -> int | None:
    """Return how many samples of a split the job reads at least; None if it reads as many as there are.

    As the engine's `get_train_valid_test_num_samples`; a batch size left out counts as the smallest possible.
    """
    batch = values.get("global_batch_size") or values.get("micro_batch_size") or 0
    iters, samples = values.get("train_iters") or 0, values.get("train_samples") or 0
    is_single = values.get("dataloader_type") in (None, "single")
    if not (is_single and batch and values.get("seq_length") and (iters or samples)):
        return None
    if unit_of(values) == "iters":
        samples = iters * batch
    if split == "train":
        is_other = values.get("phase_transition_iterations") or values.get("skip_train")
        return None if is_other else int(samples)
    if values.get("full_validation"):
        return None
    interval = values.get("eval_interval") or DEFAULT_EVAL_INTERVAL
    times = 1
    if split == "valid" and not values.get("skip_train"):
        times = max(0, samples // batch // interval + 1 - (values.get("start_eval_at_iter") or 0) // interval)
    return int(times * (values.get("eval_iters") or 0) * (values.get("eval_global_batch_size") or batch))
