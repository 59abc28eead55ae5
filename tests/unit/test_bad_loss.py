"""Which losses are bad, and with which ones the next is compared."""

from __future__ import annotations

import math
from typing import Any

import pytest

from megatron.flagscale.steering.bad_loss import Rule, asking, fault_of, following

RULE = Rule(3.0, 4)


@pytest.mark.parametrize(
    ("loss", "is_finite", "recent", "says"),
    [
        (2.0, True, [], ""),
        (math.nan, True, [], "the loss is NaN"),
        (math.inf, True, [], "the loss is infinite"),
        (2.0, False, [], "the gradient is NaN or infinite"),
        (99.0, True, [2.0, 2.0, 2.0], ""),
        (6.0, True, [2.0, 1.0, 2.0, 9.0], ""),
        (
            6.5,
            True,
            [2.0, 1.0, 2.0, 9.0],
            "the loss 6.5000 is more than 3 times 2.0000, the median of the last 4",
        ),
    ],
)
def test_the_reason_of_a_bad_loss(loss: float, is_finite: bool, recent: list[float], says: str) -> None:
    assert fault_of(loss, is_finite, recent, RULE) == says


def test_without_a_factor_every_finite_loss_is_fine() -> None:
    assert fault_of(1e9, True, [1.0, 1.0], Rule(None, 2)) == ""


def test_the_window_keeps_finite_losses_and_accepts_a_new_level() -> None:
    recent: list[float] = []
    faults = []
    for loss in (1.0, 1.0, 1.0, 1.0, math.nan, 9.0, 9.0, 9.0, 9.0):
        faults.append(bool(fault_of(loss, True, recent, RULE)))
        recent = following(recent, loss, RULE)
    assert recent == [9.0] * 4
    assert faults == [False, False, False, False, True, True, True, False, False]


class Optimizer:
    """The methods of Megatron's optimizer that decide about an update."""

    def __init__(self, clips: bool) -> None:
        self.clips, self.updates = clips, 0

    def get_grad_norm(self) -> float:
        return 2.5

    def step_with_ready_grads(self) -> bool:
        self.updates += 1
        return True

    def step(self) -> bool:
        if self.clips:
            self.get_grad_norm()
        return self.step_with_ready_grads()


@pytest.mark.parametrize("clips", [True, False])
@pytest.mark.parametrize("allowed", [True, False])
def test_an_optimizer_is_asked_once_and_is_as_before_afterwards(clips: bool, allowed: bool) -> None:
    optimizer: Any = Optimizer(clips)
    norms: list[float] = []

    def may_update(norm: float) -> bool:
        norms.append(norm)
        return allowed

    before = dict(vars(optimizer))
    with asking(optimizer, may_update):
        assert optimizer.step() is allowed
    assert norms == [2.5]
    assert vars(optimizer) == before | {"updates": int(allowed)}
