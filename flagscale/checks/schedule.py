"""The length and the schedules of a training, as the engine derives them from its arguments.

The formulas are those of `get_optimizer_param_scheduler` in megatron/training/training.py (0.19.2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import batched, pairwise
from typing import Any, Literal

DEFAULT_EVAL_INTERVAL = 1000
"""The worker's default of `eval_interval`, as in FlagScale v0.6.0; the engine divides by it but has none."""

_LENGTH = ("train_iters", "train_samples", "global_batch_size")
PARTS: Mapping[str, tuple[str, ...]] = {
    "the learning rate": ("lr",),
    "the minimum learning rate": ("min_lr",),
    "the warm-up": (
        *("lr_warmup_iters", "lr_warmup_samples", "lr_warmup_fraction"),
        *("lr_decay_iters", "lr_decay_samples", *_LENGTH),
    ),
    "the length of the schedule": ("lr_decay_iters", "lr_decay_samples", *_LENGTH),
    "the decay style": ("lr_decay_style",),
    "the initial weight decay": ("start_weight_decay", "weight_decay", "weight_decay_incr_style"),
    "the final weight decay": ("end_weight_decay", "weight_decay", "weight_decay_incr_style"),
    "the length of the weight decay's increase": _LENGTH,
    "the increase of the weight decay": ("weight_decay_incr_style",),
}
"""What the engine asserts to be equal when a run resumes, with the arguments that each follows from."""


def unit_of(values: Mapping[str, Any]) -> Literal["iters", "samples"]:
    """Return the unit in which arguments (by dest) give the length of a training.

    The engine itself sets `train_iters` if `train_samples` is given.
    """
    return "samples" if values.get("train_samples") else "iters"


def batch_sizes(text: str, seq_length: int) -> list[tuple[int, int]]:
    """Return (consumed samples, batch size from there on) of a `step_batch_size_schedule`.

    Raises:
        ValueError: it has another form (megatron/core/num_microbatches_calculator.py, 0.19.2).
    """
    steps = []
    for entry in text.replace(",", " ").split():
        found = re.fullmatch(rf"{_NUMBER}:{_NUMBER}", entry.strip(), re.IGNORECASE)
        if not found:
            raise ValueError(f"`{entry}` is not TOKENS:BATCH, such as 2M:64")
        tokens, batch = (
            int(float(number) * _UNITS[unit.upper()]) for number, unit in batched(found.groups(), 2)
        )
        steps.append((tokens // seq_length, batch))
    steps.sort(key=lambda step: step[0])
    if not steps or steps[0][0] != 0:
        raise ValueError("the first batch size must begin at 0 tokens")
    if any(first == later for (first, _), (later, _) in pairwise(steps)):
        raise ValueError(f"two batch sizes begin at the same sample (of {seq_length} tokens)")
    if not all(batch for _, batch in steps):
        raise ValueError("a batch size must be at least 1")
    return steps


def last_batch(values: Mapping[str, Any]) -> int:
    """Return the samples of a step, the last ones of a schedule; 0 if the arguments do not say.

    Raises:
        ValueError: the schedule has another form.
    """
    if written := values.get("step_batch_size_schedule"):
        return batch_sizes(str(written), int(values["seq_length"]))[-1][1]
    return int(values.get("global_batch_size") or 0)


def whole_batches(steps: Sequence[tuple[int, int]], samples: int) -> tuple[int, int]:
    """Return the samples consumed by the steps within `samples`, and by the steps that reach them.

    `steps` as from `batch_sizes`. The two numbers are equal if the samples end with a whole batch.
    """
    consumed, ends = 0, [*(first for first, _ in steps[1:]), samples]
    for (_, batch), end in zip(steps, ends, strict=True):
        consumed += max(0, -(-(min(end, samples) - consumed) // batch)) * batch
        if consumed >= samples:
            return consumed - batch * (consumed > samples), consumed
    return consumed, consumed


_NUMBER = r"(\d{1,18}(?:\.\d+)?)([KMBT]?)"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def schedule(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value of each of `PARTS`; lengths in samples, None if unknown."""
    unit = unit_of(values)
    scale: float | None = 1
    if unit == "iters":
        scale = None if values.get("step_batch_size_schedule") else _number(values, "global_batch_size")
    whole = _number(values, f"train_{unit}")
    decay = _number(values, f"lr_decay_{unit}") or whole
    fraction = _number(values, "lr_warmup_fraction")
    warmup = (_number(values, f"lr_warmup_{unit}") or 0) if fraction is None else fraction * (decay or 0)
    is_constant = values.get("weight_decay_incr_style") == "constant"
    start, end = (
        values.get("weight_decay" if is_constant else f"{one}_weight_decay") for one in ("start", "end")
    )
    found = (
        values.get("lr"),
        values.get("min_lr") or 0.0,
        scale and warmup * scale,
        scale and decay and decay * scale,
        values.get("lr_decay_style"),
        start,
        end,
        scale and whole and whole * scale,
        values.get("weight_decay_incr_style"),
    )
    return dict(zip(PARTS, found, strict=True))


def _number(values: Mapping[str, Any], name: str) -> float | None:
    """Return a value; None if it is missing or, in a record that another version wrote, not a number."""
    value = values.get(name)
    return value if isinstance(value, int | float) else None
