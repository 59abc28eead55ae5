"""Judge the loss and the gradient of an iteration before its update.

The last pipeline stage alone has the loss; one sum over all ranks gives it to the others. All ranks keep the
same recent losses, so they decide alike.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RECENT = "recent_losses"
"""The argument, saved with all others, that holds the losses with which the next one is compared."""


@dataclass(frozen=True)
class Rule:
    """When a finite loss is bad: above `factor` times the median of the last `window` losses."""

    factor: float | None
    """None: never."""
    window: int


def fault_of(loss: float, has_finite_gradient: bool, recent: Sequence[float], rule: Rule) -> str:
    """Return why no update may be made from an iteration, as `the loss is NaN`; "" if it is fine.

    `recent`: the finite losses before it, oldest first. It is not compared before the window is full.
    """
    if not math.isfinite(loss):
        return f"the loss is {'NaN' if math.isnan(loss) else 'infinite'}"
    if not has_finite_gradient:
        return "the gradient is NaN or infinite"
    if rule.factor is None or len(recent) < rule.window:
        return ""
    median = statistics.median(recent[-rule.window :])
    if loss <= rule.factor * median:
        return ""
    return (
        f"the loss {loss:.4f} is more than {rule.factor:g} times {median:.4f}, "
        f"the median of the last {rule.window}"
    )


def following(recent: Sequence[float], loss: float, rule: Rule) -> list[float]:
    """Return the recent losses with this one, which is added if it is finite.

    A spike is added too: the median hardly changes with one, and follows if the losses stay at a new level.
    """
    return [*recent, *([loss] if math.isfinite(loss) else [])][-rule.window :]


def own_sums(losses: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return [sum of the loss, number of tokens] of this rank's micro-batches; zeros without a loss.

    `losses` is what the schedule returns: per micro-batch the losses by name, as (sum, tokens) or as a mean.
    The first name counts.
    """
    if not losses:
        return [0.0, 0.0]
    import torch

    name = next(iter(losses[0]))
    rows = torch.stack([one[name].detach().float().reshape(-1) for one in losses])
    total, *tokens = rows.sum(0).tolist()
    return [total, tokens[0] if tokens else float(len(losses))]


def agreed(losses: Sequence[Mapping[str, Any]], grad_norm: float) -> tuple[float, bool]:
    """Return the mean loss of the iteration, and whether the gradient is finite: the same on all ranks.

    All ranks have to call it together, with this rank's losses and gradient norm.
    """
    import torch

    from megatron.flagscale.chips import chip

    # Ranks with the same tokens count several times, all alike, which does not change the mean.
    is_broken = float(not math.isfinite(grad_norm))
    sums = torch.tensor([*own_sums(losses), is_broken], dtype=torch.float32, device=chip().device())
    torch.distributed.all_reduce(sums)
    total, tokens, broken = sums.tolist()
    return total / tokens if tokens else 0.0, not broken


@contextlib.contextmanager
def asking(optimizer: Any, may_update: Callable[[float], bool]) -> Iterator[None]:
    """Let an optimizer of Megatron update the weights only if `may_update(gradient norm)` returns true.

    It is called once in `optimizer.step()`, on every rank, after the norm is known. Without it, the step
    returns that there was no update, as after an overflow with fp16, and the schedule does not advance.
    """
    norms: list[float] = []
    # The methods of the class, which `step` looks up on the object.
    get_norm, update = optimizer.get_grad_norm, optimizer.step_with_ready_grads

    def get_grad_norm() -> float:
        norms.append(get_norm())
        return norms[-1]

    def step_with_ready_grads() -> bool:
        norm = norms[-1] if norms else get_norm()
        return bool(may_update(float(norm)) and update())

    optimizer.get_grad_norm, optimizer.step_with_ready_grads = get_grad_norm, step_with_ready_grads
    try:
        yield
    finally:
        del optimizer.get_grad_norm, optimizer.step_with_ready_grads
