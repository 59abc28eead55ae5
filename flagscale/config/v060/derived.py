"""Keys of FlagScale v0.6.0 that stand for arguments of today's engine: their values are computed here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import ceil
from typing import Any

from flagscale.config.engine_args import FlatKey, Unknown
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem

_NUMBERS: Mapping[str, type[int] | type[float]] = {
    **dict.fromkeys(
        (
            *("hidden_size", "ffn_hidden_size", "multiple_of", "seq_length", "global_batch_size"),
            *("train_samples", "vocab_size", "make_vocab_size_divisible_by", "tensor_model_parallel_size"),
            *("context_parallel_size", "ulysses_sp_parallel_size", "max_position_embeddings"),
            *("img_h", "img_w", "patch_dim"),
        ),
        int,
    ),
    "hidden_dim_multiplier": float,
}
"""The numbers from which values are computed."""


def with_numbers(flat_keys: Sequence[FlatKey]) -> list[FlatKey]:
    """Return the flat keys with numbers that are given as text, which the engine reads too, as numbers."""
    return [replace(key, value=_as_number(key)) if key.name in _NUMBERS else key for key in flat_keys]


def _as_number(flat_key: FlatKey) -> Any:
    if isinstance(flat_key.value, str):
        with suppress(ValueError):
            return _NUMBERS[flat_key.name](flat_key.value)
    return flat_key.value


def ffn_hidden_size(hidden_size: int, multiple_of: int, multiplier: float = 1.0) -> int:
    """Return the width of a SwiGLU feed-forward layer by Llama's rule: 2/3 of 4h, scaled, rounded up."""
    width = int(multiplier * int(2 * 4 * hidden_size / 3))
    return multiple_of * ceil(width / multiple_of)


def with_ffn_size(
    flat_keys: Sequence[FlatKey], source_map: SourceMap, problems: list[Problem], notices: list[Problem]
) -> list[FlatKey]:
    """Replace `multiple_of` and `hidden_dim_multiplier` with the `ffn_hidden_size` that they stand for.

    As in v0.6.0, they have an effect only with SwiGLU and without an explicit `ffn_hidden_size`.
    """
    named = {flat_key.name: flat_key for flat_key in flat_keys}
    values = {flat_key.name: flat_key.value for flat_key in flat_keys}
    given = [named[name] for name in ("multiple_of", "hidden_dim_multiplier") if name in named]
    rule, scale = values.get("multiple_of"), values.get("hidden_dim_multiplier")
    hidden: Any = values.get("hidden_size")
    unused = ""
    if values.get("ffn_hidden_size") is not None:
        unused = "ffn_hidden_size is given"
    elif not values.get("swiglu"):
        unused = "it is used only with swiglu"
    elif rule is None:
        unused = "it is used only with multiple_of"
    if unused:
        notices += [Problem(f"dropped because {unused}", source_map.where(key.path)) for key in given]
        return [key for key in flat_keys if key not in given]
    size: Any = Unknown.VALUE
    is_known = Unknown.VALUE not in (rule, scale, hidden)
    wrong = [key for key in given if is_known and key.value is not None and not _is_positive(key.value)]
    problems += [
        Problem(f"`{key.name}` must be a number above 0, not {key.value!r}", source_map.where(key.path))
        for key in wrong
    ]
    if is_known and not wrong and _is_positive(hidden):
        size = ffn_hidden_size(int(hidden), int(rule or 0), float(scale or 1.0))
        places = ", ".join(source_map.where(key.path) for key in given)
        notices.append(Problem(f"is now `ffn_hidden_size: {size}`", places))
    instead = FlatKey("ffn_hidden_size", size, named["multiple_of"].path)
    return _replaced(flat_keys, {"multiple_of": instead, "hidden_dim_multiplier": None})


def batch_steps(start: int, increment: int, samples: int, batch: int) -> dict[int, int]:
    """Return consumed samples -> batch size from there on, as v0.6.0's ramp-up from `start` to `batch`.

    Its calculator (megatron/core/num_microbatches_calculator.py) divides the consumed samples by those per
    increment, in floating-point numbers.
    """
    increments = (batch - start) // increment
    if not (increments and samples):
        return {0: batch}
    per_increment = samples / increments
    steps = {0: start}
    for done in range(1, increments + 1):
        first = ceil(done * samples / increments)
        while int(first / per_increment) < done:
            first += 1
        while first and int((first - 1) / per_increment) >= done:
            first -= 1
        steps[first] = start + done * increment
    return steps


def with_batch_schedule(
    flat_keys: Sequence[FlatKey], source_map: SourceMap, problems: list[Problem], notices: list[Problem]
) -> list[FlatKey]:
    """Replace `rampup_batch_size` and `global_batch_size` with a schedule of the same batch sizes.

    The engine counts the schedule in tokens, and evaluates with a batch size of its own.
    """
    named = {flat_key.name: flat_key for flat_key in flat_keys}
    values: dict[str, Any] = {flat_key.name: flat_key.value for flat_key in flat_keys}
    ramp = named.get("rampup_batch_size")
    if ramp is None:
        return [*flat_keys]
    where = source_map.where(ramp.path)
    batch: Any = values.get("global_batch_size")
    length: Any = values.get("seq_length")
    unknown = FlatKey("step_batch_size_schedule", Unknown.VALUE, ramp.path)
    if ramp.value in (None, []):
        notices.append(Problem("dropped because it has no effect", where))
        return _replaced(flat_keys, {ramp.name: None})
    if Unknown.VALUE in (ramp.value, batch, values.get("train_iters")):
        return _replaced(flat_keys, {ramp.name: unknown})
    if wrong := _ramp_mistake(ramp.value, values):
        hint = "or write the batch sizes as step_batch_size_schedule: '0:32 2M:64 ...' (tokens:batch)"
        problems.append(Problem(wrong, where, hint))
        return _replaced(flat_keys, {ramp.name: unknown})
    if not isinstance(length, int):
        return _replaced(flat_keys, {ramp.name: unknown})
    start, increment, samples = map(int, ramp.value)
    steps = batch_steps(start, increment, samples, batch)
    if len(steps) == 1:
        notices.append(Problem(f"dropped because the batch size is {batch} from the start", where))
        return _replaced(flat_keys, {ramp.name: None})
    pairs = [f"{first * length}:{size}" for first, size in steps.items()]
    span = f"{len(steps)} steps, {pairs[0]} ... {pairs[-1]} (tokens:batch)"
    path = named["global_batch_size"].path
    places = ", ".join(map(source_map.where, (ramp.path, path)))
    notices.append(
        Problem(
            f"is now a `step_batch_size_schedule` of {span}, and `eval_global_batch_size: {batch}`", places
        )
    )
    flat_keys = _replaced(flat_keys, {ramp.name: FlatKey(unknown.name, " ".join(pairs), ramp.path)})
    evaluated = None if "eval_global_batch_size" in named else FlatKey("eval_global_batch_size", batch, path)
    flat_keys = _replaced(flat_keys, {"global_batch_size": evaluated})
    return _with_whole_batches(flat_keys, steps, samples, source_map, notices)


def _with_whole_batches(
    flat_keys: list[FlatKey],
    steps: Mapping[int, int],
    ramp: int,
    source_map: SourceMap,
    notices: list[Problem],
) -> list[FlatKey]:
    """Return the flat keys with the samples that v0.6.0 took; the engine would begin another batch."""
    named = {flat_key.name: flat_key for flat_key in flat_keys}
    length = named.get("train_samples")
    if length is None or not isinstance(length.value, int):
        return flat_keys
    taken = samples_taken(steps, ramp, length.value)
    if taken == length.value:
        return flat_keys
    last = "left out the last batch, which is not full" if taken < length.value else "filled the last batch"
    what = f"is now {taken}: FlagScale v0.6.0 {last}"
    notices.append(Problem(what, source_map.where(length.path)))
    if "lr_decay_samples" not in named:
        flat_keys = [*flat_keys, replace(length, name="lr_decay_samples")]
    return _replaced(flat_keys, {length.name: replace(length, value=taken)})


def samples_taken(steps: Mapping[int, int], ramp: int, samples: int) -> int:
    """Return how many of the `samples` v0.6.0 trained on, with a ramp-up over the first `ramp` of them.

    As its `update_train_iters` (megatron/training/training.py): every batch of the constant part is full.
    """
    consumed, (_, *later) = 0, steps
    for size, end in zip(steps.values(), (*later, ramp + 1), strict=True):
        until = min(end, ramp + 1, samples + 1)
        consumed += max(0, ceil((until - consumed) / size)) * size
    batch = [*steps.values()][-1]
    return consumed + max(0, samples - consumed) // batch * batch


def _replaced(flat_keys: Sequence[FlatKey], instead: Mapping[str, FlatKey | None]) -> list[FlatKey]:
    """Return the flat keys with those named replaced, or removed."""
    changed = (instead.get(key.name, key) for key in flat_keys)
    return [key for key in changed if key is not None]


def _ramp_mistake(ramp: Any, values: Mapping[str, Any]) -> str:
    """Return why there is no schedule for a ramp-up, as v0.6.0 would have said it; empty if there is one."""
    if not _is_ramp(ramp):
        return "`rampup_batch_size` takes three whole numbers: first batch size, increment, samples"
    start, increment, _ = map(int, ramp)
    batch = values.get("global_batch_size")
    if not isinstance(batch, int) or isinstance(batch, bool):
        return "`rampup_batch_size` needs `global_batch_size`, the batch size that it leads to"
    if batch < start or (batch - start) % increment:
        return f"steps of {increment} do not lead from {start} to global_batch_size {batch}"
    if (steps := (batch - start) // increment) > _MOST_STEPS:
        return f"{steps} steps from {start} to global_batch_size {batch} are more than {_MOST_STEPS}"
    if values.get("train_iters") is not None:
        return "`rampup_batch_size` needs the length of the training as `train_samples`, not `train_iters`"
    return ""


def _is_ramp(value: Any) -> bool:
    """Return whether a value is v0.6.0's ramp: three whole numbers, which may be text."""
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(not isinstance(item, bool) and _WHOLE.fullmatch(str(item)) for item in value)
        and all(int(item) for item in value[:2])
    )


_WHOLE = re.compile(r"[0-9]{1,18}")
_MOST_STEPS = 5000
"""The schedule is one word of the ranks' command line, for which Linux allows 128 KiB."""


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
