"""Errors of estimates are learnt per feature, and as far as they are certain."""

from __future__ import annotations

from math import log

import pytest

from flagscale.planner.tuning.residuals import deviation, residuals


def test_nothing_is_known_before_the_first_trial() -> None:
    found = residuals([], 2, 0.1)
    assert found.factor((1, 3)) == 1
    assert found.low_factor((0, 0)) == pytest.approx(0.907, abs=0.001)  # exp(-1.96 x 0.1 / 2)
    assert found.low_factor((1, 0)) > found.low_factor((2, 0))


def test_a_weight_is_shared_by_all_that_have_the_feature() -> None:
    found = residuals([((1, 0), 1.0, 1.5, 0.0), ((0, 1), 1.0, 1.0, 0.0)], 2, 0.6)
    assert found.factor((1, 0)) > 1.4
    assert found.factor((2, 0)) > 1.9
    assert found.factor((0, 1)) == pytest.approx(1, abs=0.01)


def test_more_trials_make_it_more_certain() -> None:
    row = ((1.0,), 1.0, 1.2, 0.0)
    one, many = (residuals([row] * times, 1, 0.4) for times in (1, 8))
    assert abs(log(many.factor((1,)) / 1.2)) < abs(log(one.factor((1,)) / 1.2))
    assert many.low_factor((1,)) > one.low_factor((1,))


def test_a_noisy_trial_teaches_less() -> None:
    sure, noisy = (residuals([((1.0,), 1.0, 1.2, noise)], 1, 0.2) for noise in (0.02, 0.3))
    assert sure.factor((1,)) > noisy.factor((1,)) > 1


@pytest.mark.parametrize(("low", "expected"), [(0.9, 0.0538), (1.0, 0.0005), (0.0, 3.52)])
def test_the_deviation_of_an_interval(low: float, expected: float) -> None:
    assert deviation(low) == pytest.approx(expected, rel=0.03)
