"""FlagScale v0.6.0's learning-rate schedule in parts: warm-up, cosine, inverse square root, linear decay.

All parts are counted in samples from the start of the training. After the engine's own warm-up:

* up to `cosine_samples`, a cosine between `cosine_max_lr`, where it begins, and a tenth of it, that repeats
  after `cosine_period_samples` (default: the length of the schedule);
* for another `rsqrt_samples`, alpha / sqrt(samples / global_batch_size + beta);
* linear decay from there to `min_lr` over `decay_samples`; if these are 0, to 0 at the end of the schedule.

After the end of the schedule, the learning rate is `min_lr`, as with every other style.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import cos, pi, sqrt
from typing import Any

from flagscale.checks.schedule import schedule
from flagscale.errors import Violation

STYLE = "stablelm2-scheduler"
COSINE, COSINE_MAX, PERIOD, RSQRT, DECAY, ALPHA, BETA = KEYS = tuple(
    f"lr_decay_stablelm2_{name}"
    for name in (
        *("cosine_samples", "cosine_max_lr", "cosine_period_samples", "rsqrt_samples", "decay_samples"),
        *("alpha", "beta"),
    )
)


def learning_rate(samples: float, length: float, values: Mapping[str, Any]) -> float:
    """Return the learning rate after the warm-up; `values` are the arguments by dest.

    `samples` and `length`: how many samples have been trained, and after how many the schedule ends.
    """
    cosine_end: int = values[COSINE]
    rsqrt_end: int = cosine_end + values[RSQRT]
    if cosine_end and samples <= cosine_end:
        turn = samples / (values[PERIOD] or length)
        top = float(values[COSINE_MAX])
        return top * (0.55 + 0.45 * cos(2 * pi * turn))
    steps = min(samples, rsqrt_end) / values["global_batch_size"]
    top = float(values[ALPHA]) / sqrt(steps + values[BETA])
    if samples <= rsqrt_end:
        return top
    least = float(values["min_lr"] or 0.0) if values[DECAY] else 0.0
    end = min(length, rsqrt_end + values[DECAY]) if values[DECAY] else length
    if samples >= end:
        return least
    return top + (least - top) * (samples - rsqrt_end) / (end - rsqrt_end)


def stablelm2_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield what the schedule lacks, and what it does not support."""
    if values.get("lr_decay_style") != STYLE:
        return
    for name in (COSINE, PERIOD, RSQRT, DECAY, ALPHA, BETA):
        if isinstance(values.get(name), int | float) and values[name] < 0:
            yield name, f"`{name}` must be at least 0, not {values[name]}"
    warm_up, length = (schedule(values)[part] for part in ("the warm-up", "the length of the schedule"))
    cosine = values.get(COSINE) or 0
    if cosine > (warm_up or 0) and values.get(COSINE_MAX) is None:
        yield COSINE_MAX, f"`{COSINE}` needs `{COSINE_MAX}`: the learning rate where the cosine begins"
    if not cosine and not values.get(BETA) and warm_up == 0:
        what = "1 / sqrt(0) at the first step: give a warm-up"
        yield BETA, f"`lr_decay_style: {STYLE}` begins with {what}, `{COSINE}` or `{BETA}`"
    begin, own = max(cosine, warm_up or 0), values.get(RSQRT) or 0
    if own >= 0 and cosine + own <= begin < (length or 0):
        # v0.6.0 went on with a learning rate of 0.
        what = f"the linear decay of `{STYLE}` begins where the inverse square root ends: give its samples"
        yield RSQRT, f"{what}, more than {begin - cosine:.0f}, or let the cosine last {length:.0f} samples"
    for name, why in _UNSUPPORTED.items():
        if values.get(name) is not None:
            yield name, f"`{name}` is not supported with `lr_decay_style: {STYLE}`: {why}"


_UNSUPPORTED = {
    "step_batch_size_schedule": "it counts steps of one batch size",
    "decoupled_lr": "all weights have one learning rate",
    "decoupled_min_lr": "all weights have one learning rate",
}


def stablelm2_remarks(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield the keys of the schedule that have no effect because another one is chosen."""
    if values.get("lr_decay_style") == STYLE:
        return
    neutral = {ALPHA: 1.0}
    for name in KEYS:
        if values.get(name) and values[name] != neutral.get(name):
            yield name, f"has no effect without `lr_decay_style: {STYLE}`"
