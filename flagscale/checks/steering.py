"""What a training does with data that is not trained on, with bad losses and with slow ranks: its rules."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from flagscale.errors import Violation

SAMPLES, ITERATIONS = RANGES = ("skip_samples_range", "skip_iters_range")
"""The arguments (by dest) that hold ranges to skip."""
ON_BAD_LOSS, FACTOR, WINDOW = "on_bad_loss", "bad_loss_factor", "bad_loss_window"
STOP, SKIP, ROLLBACK = REACTIONS = ("stop", "skip", "rollback")
"""The values of `on_bad_loss`."""
MAX_ROLLBACKS = "max_rollbacks"
SLOW_FACTOR = "slow_rank_factor"
DEFAULT_WINDOW, DEFAULT_ROLLBACKS, DEFAULT_SLOW_FACTOR = 20, 3, 1.5

Range = tuple[int, int]
"""The first sample or iteration of a range, counted from 0, and the first one after it."""

_JUDGED_BY = {
    "fp16": "the loss scale of fp16 already skips updates; use bf16",
    "optimizer_cuda_graph": "the optimizer's CUDA graph cannot leave out an update",
    "overlap_param_gather_with_optimizer_step": "the gathering begins before the whole gradient is known",
}
"""By dest: what makes it impossible to leave out the update of a bad loss, and why."""
_STARTS_OVER = ("finetune", "finetune_with_optim", "ckpt_step")
"""By dest: what makes every start load something else than the newest checkpoint of the run as it is."""
_LEAST = {WINDOW: 2, MAX_ROLLBACKS: 1}


def ranges_of(text: str | None) -> tuple[Range, ...]:
    """Return the ranges in the text of an argument, `[10, 20]` or `[[10, 20], [40, 50]]`; none for None.

    Raises:
        ValueError: it has another form.
    """
    if text is None:
        return ()
    form = "write [first, end] or a list of such pairs, with 0 <= first < end"
    try:
        found = _with_numbers(json.loads(text))
    except ValueError:
        found = None
    if not isinstance(found, list) or not found:
        raise ValueError(f"{text} is not a list of ranges; {form}")
    pairs = found if any(isinstance(one, list) for one in found) else [found]
    for pair in pairs:
        is_pair = isinstance(pair, list) and len(pair) == 2 and all(_is_whole(one) for one in pair)
        if not is_pair or not 0 <= pair[0] < pair[1]:
            raise ValueError(f"{json.dumps(pair)} is not a range; {form}")
    return tuple((first, end) for first, end in pairs)


def _with_numbers(value: Any) -> Any:
    """Return a value whose numbers may be text: the launcher passes on those of a list as written."""
    if isinstance(value, list):
        return [_with_numbers(one) for one in value]
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def touches(ranges: Sequence[Range], first: int, end: int) -> bool:
    """Return whether one of the ranges has a number from `first` to before `end`."""
    return any(start < end and first < stop for start, stop in ranges)


def judges_losses(values: Mapping[str, Any]) -> bool:
    """Return whether the loss of each iteration (arguments by dest) is judged before its update."""
    return values.get(ON_BAD_LOSS, STOP) != STOP or values.get(FACTOR) is not None


def steering_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield each rule for skipped data, bad losses and slow ranks that the arguments (by dest) break."""
    for name in RANGES:
        try:
            ranges_of(values.get(name))
        except ValueError as error:
            yield name, f"`{name}`: {error}"
    factor, slow = values.get(FACTOR), values.get(SLOW_FACTOR)
    if factor is not None and factor <= 1:
        yield FACTOR, f"`{FACTOR}` must be more than 1, not {factor}: a loss above factor x median is bad"
    if slow is not None and slow != 0 and slow <= 1:
        yield SLOW_FACTOR, f"`{SLOW_FACTOR}` must be more than 1, or 0 to compare no ranks, not {slow}"
    for name, least in _LEAST.items():
        if values.get(name) is not None and values[name] < least:
            yield name, f"`{name}` must be at least {least}, not {values[name]}"
    if not judges_losses(values):
        return
    blamed = ON_BAD_LOSS if values.get(ON_BAD_LOSS, STOP) != STOP else FACTOR
    for name, why in _JUDGED_BY.items():
        if values.get(name):
            yield blamed, f"`{blamed}` cannot be combined with `{name}`: {why}"
    if values.get(ON_BAD_LOSS) == ROLLBACK:
        if not values.get("save"):
            yield ON_BAD_LOSS, f"`{ON_BAD_LOSS}: {ROLLBACK}` needs `save`: it goes back to a checkpoint"
        elif values.get("load") is not None and values["load"] != values["save"]:
            what = f"`{ON_BAD_LOSS}: {ROLLBACK}` goes back to a checkpoint of its own"
            yield ON_BAD_LOSS, f"{what}: `load` must be the folder of `save`; use `pretrained_checkpoint`"
        for name in _STARTS_OVER:
            if values.get(name) and not values.get("pretrained_checkpoint"):
                what = f"`{ON_BAD_LOSS}: {ROLLBACK}` cannot be combined with `{name}`"
                yield ON_BAD_LOSS, f"{what}, which does not continue the run; use `pretrained_checkpoint`"


def steering_remarks(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield the keys that have no effect because another one is not set."""
    if values.get(FACTOR) is None and values.get(WINDOW) not in (None, DEFAULT_WINDOW):
        yield WINDOW, f"has no effect without `{FACTOR}`"
    is_rollback = values.get(ON_BAD_LOSS) == ROLLBACK
    if not is_rollback and values.get(MAX_ROLLBACKS) not in (None, DEFAULT_ROLLBACKS):
        yield MAX_ROLLBACKS, f"has no effect without `{ON_BAD_LOSS}: {ROLLBACK}`"
    for name, unit in ((SAMPLES, "samples"), (ITERATIONS, "iterations")):
        total = _total(values, name)
        with suppress(ValueError):  # which `steering_violations` reports
            late = [list(one) for one in ranges_of(values.get(name)) if total and one[0] >= total]
            if late:
                shown = ", ".join(map(str, late))
                yield name, f"has no effect on {shown}: the training has {unit} 0 to {total - 1}"


def _total(values: Mapping[str, Any], name: str) -> int:
    """Return how many samples or iterations a training has; 0 if the arguments do not show it."""
    iters, samples = values.get("train_iters") or 0, values.get("train_samples") or 0
    if name == ITERATIONS or samples:
        return int(iters if name == ITERATIONS else samples)
    return (
        0 if values.get("step_batch_size_schedule") else int(iters * (values.get("global_batch_size") or 0))
    )
