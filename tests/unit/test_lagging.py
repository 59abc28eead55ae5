"""Which ranks are slow, from the seconds of their passes."""

from __future__ import annotations

from megatron.flagscale.steering.lagging import Lag, factors_of, following, named


def test_a_rank_is_compared_with_its_own_stage() -> None:
    seconds, stages = [1.0, 1.0, 3.0, 5.0, 5.0, 4.0], [0, 0, 0, 1, 1, 1]
    assert factors_of(seconds, stages) == [1.0, 1.0, 3.0, 1.0, 1.0, 0.8]


def test_of_two_ranks_the_slower_one_is_found() -> None:
    assert factors_of([2.0, 1.0], [0, 0]) == [2.0, 1.0]
    assert factors_of([7.0, 1.0], [0, 1]) == [1.0, 1.0]  # nothing to compare with


def test_a_rank_is_named_after_five_intervals_in_a_row() -> None:
    lags: dict[int, Lag] = {}
    seen = []
    for own in (2.0, 2.0, 2.0, 2.0, 1.0, 2.0, 2.0, 2.0, 2.0, 3.0, 2.5):
        lags = following(lags, [1.0, own, 1.0, own / 2 + 1], 1.9)
        seen.append([(lag.rank, lag.factor) for lag in named(lags)])
    assert seen[:9] == [[]] * 9
    assert seen[9:] == [[(1, 3.0), (3, 2.5)], [(1, 2.5), (3, 2.25)]]
