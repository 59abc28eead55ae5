"""FlagScale v0.6.0's schedule: values computed by hand from its definition, and its rules."""

from __future__ import annotations

from typing import Any

import pytest

from flagscale.checks.stablelm2 import KEYS, STYLE, learning_rate
from tests.unit.test_megatron_adapter import Build, Refused

VALUES: dict[str, Any] = {
    "global_batch_size": 4,
    "min_lr": 0.001,
    "lr_decay_stablelm2_cosine_samples": 16,
    "lr_decay_stablelm2_cosine_max_lr": 0.01,
    "lr_decay_stablelm2_cosine_period_samples": 32,
    "lr_decay_stablelm2_rsqrt_samples": 20,
    "lr_decay_stablelm2_decay_samples": 16,
    "lr_decay_stablelm2_alpha": 0.1,
    "lr_decay_stablelm2_beta": 1.0,
}
TO_ZERO = {"lr_decay_stablelm2_decay_samples": 0}
WHOLE = {"lr_decay_stablelm2_cosine_period_samples": 0}


@pytest.mark.parametrize(
    ("samples", "changes", "expected"),
    [
        (0, {}, 0.01),  # the top of the cosine
        (4, {}, 0.0086819805),  # 0.001 + 0.009 * (1 + cos(45 degrees)) / 2
        (8, {}, 0.0055),  # 90 degrees: the middle
        (12, {}, 0.0023180195),  # 135 degrees
        (16, {}, 0.001),  # 180 degrees: a tenth
        (16, WHOLE, 0.0068905765),  # 16 of all 80 samples: 72 degrees
        (20, {}, 0.0408248290),  # 0.1 / sqrt(5 + 1)
        (36, {}, 0.0316227766),  # 0.1 / sqrt(9 + 1)
        (44, {}, 0.0163113883),  # half way from there to 0.001
        (52, {}, 0.001),
        (60, {}, 0.001),
        (58, TO_ZERO, 0.0158113883),  # half way from sample 36 to the end, sample 80
        (80, TO_ZERO, 0.0),
    ],
)
def test_the_curve(samples: int, changes: dict[str, Any], expected: float) -> None:
    assert learning_rate(samples, 80, {**VALUES, **changes}) == pytest.approx(expected, rel=1e-7)


def test_the_linear_decay_ends_with_the_schedule() -> None:
    assert learning_rate(40, 44, VALUES) == pytest.approx((0.1 / 10**0.5 + 0.001) / 2)
    assert learning_rate(44, 44, VALUES) == pytest.approx(0.001)


def test_without_a_cosine_the_square_root_begins_at_once() -> None:
    values = {**VALUES, "lr_decay_stablelm2_cosine_samples": 0, "lr_decay_stablelm2_cosine_max_lr": None}
    assert learning_rate(0, 80, values) == pytest.approx(0.1)


def test_keys_without_the_style_are_a_notice(build: Build) -> None:
    (notice,) = build({"lr_decay_stablelm2_rsqrt_samples": 8, "lr_decay_stablelm2_alpha": 1.0}).notices
    assert (
        notice == f"train.lr_decay_stablelm2_rsqrt_samples: has no effect without `lr_decay_style: {STYLE}`"
    )
    given = {name: VALUES[name] for name in KEYS}
    job = build({"lr_decay_style": STYLE, **given, "lr_warmup_iters": 2})
    assert job.notices == ()
    assert "--lr-decay-stablelm2-rsqrt-samples" in job.role.argv


def test_the_names_of_v060_are_complete(refused: Refused) -> None:
    (message,) = refused({"lr_decay_style": "stablelm2"})
    assert f"did you mean `{STYLE}`?" in message or STYLE in message
