"""Which candidate a tuner tries next, and why it stops."""

from __future__ import annotations

from typing import Any

import pytest

from flagscale.frozen import replace
from flagscale.planner.calibration import Calibration
from flagscale.planner.tuning.propose import Candidate, Known, Limits, needs_more, propose
from flagscale.planner.tuning.residuals import residuals
from flagscale.planner.tuning.space import DISTRIBUTED, GRANULARITY, LAYERS, METHOD, MICRO, SEQUENCE
from flagscale.planner.tuning.tried import TRIALS_EACH, Tried, standings

ERROR = 0.1
"""The stated error of the tests' estimates."""


def candidate(
    name: str, seconds: float, nbytes: float = 0.0, *, most: float = 1.0, tp: float = 0
) -> Candidate:
    return Candidate({"name": name}, seconds, nbytes, features=(tp,), memory_factor=most)


def tried(name: str, seconds: float | None = None, **more: Any) -> Tried:
    return Tried({"name": name}, seconds, **more)


def known(*measured: tuple[float, float, float], **more: Any) -> Known:
    """Return what is known after trials of (feature, expected, measured)."""
    rows = [((feature,), expected, seconds, 0.0) for feature, expected, seconds in measured]
    return Known(Calibration(), residuals(rows, 1, ERROR), **more)


A, B, C = candidate("a", 1.0, 10), candidate("b", 2.0, 5), candidate("c", 3.0, 1)
ALL = [C, B, A]


def chosen(*arguments: Any) -> str:
    found = propose(*arguments).candidate
    return found.changes["name"] if found else ""


def test_the_fastest_by_its_estimate_comes_first_then_the_next() -> None:
    assert chosen(ALL, [], Known(), Limits()) == "a"
    assert chosen(ALL, [tried("a", failure="x")], Known(), Limits()) == "b"


def test_it_stops_when_no_other_can_be_faster_within_the_stated_error() -> None:
    close = [A, candidate("b", 1.03), candidate("c", 1.5)]
    first = propose(close, [tried("a", 1.0)], known((0, 1, 1)), Limits())
    assert first.candidate is close[1]
    assert first.dropped == {"cannot be faster than the best": 1}
    second = propose(close, [tried("a", 1.0), tried("b", 1.06)], known((0, 1, 1), (0, 1.03, 1.06)), Limits())
    assert second.candidate is None
    assert "within the stated error" in second.why


def test_the_refitted_constants_move_the_limit() -> None:
    slow = replace(known((0, 1, 1)), calibration=Calibration(2.0, 0.5))
    assert slow.seconds(B) == 4.5
    assert chosen(ALL, [tried("a", 2.5)], slow, Limits()) == ""
    assert chosen(ALL, [tried("a", 4.4)], slow, Limits()) == "b"


def test_an_error_that_one_trial_shows_is_expected_of_similar_candidates() -> None:
    similar, other = candidate("similar", 1.01, tp=1), candidate("other", 1.05, tp=0)
    knowing = known((1, 1.0, 1.2))
    assert knowing.seconds(similar) > 1.09 > knowing.seconds(other)
    assert chosen([similar, other], [tried("first", 1.2)], knowing, Limits()) == "other"


def test_what_is_least_certain_is_tried_first_among_equals() -> None:
    sure, unsure = candidate("sure", 1.0), candidate("unsure", 1.0, tp=2)
    assert chosen([sure, unsure], [tried("first", 1.0)], known((0, 1.0, 1.0)), Limits()) == "unsure"


def test_what_does_not_fit_by_the_95_percent_side_is_dropped() -> None:
    found = propose(ALL, [], Known(capacity=9), Limits())
    assert found.candidate is B
    assert found.dropped == {"do not fit by the 95 % side of their estimate": 1}
    wide = [candidate("a", 1.0, 8, most=1.2)]
    assert "no other candidate fits" in propose(wide, [], Known(capacity=9), Limits()).why
    assert chosen(wide, [], Known(capacity=10), Limits()) == "a"
    assert chosen(wide, [], Known(Calibration(memory_bytes=1.0), None, 10), Limits()) == ""
    unknown = [candidate("a", 1.0)]
    assert chosen(unknown, [], Known(capacity=1), Limits()) == "a"


def test_a_trial_without_memory_proves_that_larger_ones_have_none() -> None:
    small, large, other = ({"tp": tp, MICRO: micro} for tp, micro in ((1, 2), (1, 4), (2, 4)))
    found = [Candidate(one, time) for one, time in ((small, 3.0), (large, 1.0), (other, 2.0))]
    left = propose(found, [Tried(small, is_out_of_memory=True)], Known(), Limits())
    assert left.candidate is found[2]
    assert left.dropped == {"need at least as much memory as a trial that ran out of it": 1}
    assert propose(found, [Tried(large, is_out_of_memory=True)], Known(), Limits()).dropped == {}


FULL = {GRANULARITY: "full", METHOD: "uniform", LAYERS: 1}


def block(layers: int) -> dict[str, Any]:
    return {GRANULARITY: "full", METHOD: "block", LAYERS: layers}


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ({MICRO: 4}, {MICRO: 2}),
        ({SEQUENCE: False}, {SEQUENCE: True}),
        ({DISTRIBUTED: False}, {DISTRIBUTED: True}),
        ({GRANULARITY: None}, FULL),
        ({GRANULARITY: None}, {GRANULARITY: "selective"}),
        (block(1), block(2)),
        ({MICRO: 4, GRANULARITY: None}, {MICRO: 2, **FULL}),
    ],
)
def test_memory_grows_with_these(more: dict[str, Any], less: dict[str, Any]) -> None:
    both = {MICRO: 2, "tp": 1}
    assert needs_more({**both, **more}, {**both, **less})
    assert not needs_more({**both, **less}, {**both, **more})
    assert not needs_more({**both, **more, "tp": 2}, {**both, **less})


def test_kinds_of_recomputation_that_cannot_be_compared_are_not() -> None:
    assert not needs_more({MICRO: 1, **block(1)}, {MICRO: 1, **FULL})
    assert not needs_more({MICRO: 1, GRANULARITY: "selective"}, {MICRO: 1, **FULL})


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (Limits(seconds_left=0), "max_time"),
        (Limits(trials_left=0), "max_trials"),
        (Limits(trials_left=0, tries_all=True), "max_trials"),
    ],
)
def test_limits(limits: Limits, why: str) -> None:
    found = propose(ALL, [tried("a", 1.0)], Known(), limits)
    assert found.candidate is None
    assert why in found.why


def test_it_stops_when_everything_was_tried() -> None:
    assert "every candidate" in propose([A], [tried("a", 1.0)], Known(), Limits()).why


def test_equal_failures_end_the_search_but_not_if_something_was_measured() -> None:
    many = [candidate(str(number), number) for number in range(9)]
    same = [tried(str(number), failure="no such file") for number in range(3)]
    found = propose(many, same, Known(), Limits())
    assert found.candidate is None
    assert "no such file" in found.why
    assert chosen(many, [*same[:2], tried("2", failure="another")], Known(), Limits()) == "3"
    assert chosen(many, [*same[:2], tried("2", 5.0)], Known(), Limits()) == "3"
    full = [tried(str(number), is_out_of_memory=True, failure="out of memory") for number in range(3)]
    assert chosen(many, full, Known(), Limits()) == "3"


def test_a_grid_tries_all_in_the_order_asked_for() -> None:
    best = [tried("a", 0.001)]
    assert chosen(ALL, best, known(), Limits(tries_all=True)) == "c"
    assert chosen(ALL, best, known(), Limits(tries_all=True, priority="performance")) == "b"
    assert chosen(ALL, [], known(), Limits(tries_all=True, priority="memory")) == "c"


TIMES = [A, candidate("b", 1.01), candidate("c", 1.02), candidate("d", 1.5)]


def repeat(*trials: tuple[str, float], limits: Limits = Limits()) -> str:  # noqa: B008
    return chosen(TIMES, [tried(*one) for one in trials], Known(), limits)


def test_the_fastest_are_repeated_in_turns_until_they_can_be_told_apart() -> None:
    once = [("d", 1.5), ("a", 1.0), ("c", 1.02), ("b", 1.01)]
    assert repeat(*once) == "a"
    assert repeat(*once, ("a", 1.02)) == "b"
    assert repeat(*once, ("a", 1.02), ("b", 0.99)) == "c"
    # After its second trial, c is clearly slower.
    assert repeat(*once, ("a", 1.0), ("b", 1.0), ("c", 1.2)) in {"a", "b"}
    thrice = [one for one in once for _ in range(TRIALS_EACH)]
    assert repeat(*thrice) == ""


def test_the_mean_of_all_trials_decides() -> None:
    lucky = [tried("a", 0.9), tried("b", 1.0), tried("a", 1.1), tried("b", 0.98)]
    found = standings(lucky)
    assert [one.changes["name"] for one in found] == ["b", "a"]
    assert found[1].seconds == pytest.approx(1.0)
    # Equal trials differed by more than is usual, which makes all times less certain.
    assert found[0].noise > standings([tried("a", 0.99), tried("b", 1.0)])[0].noise


def test_the_limits_hold_for_repetitions_and_leave_room_for_them() -> None:
    once = [("a", 1.0), ("b", 1.01)]
    assert repeat(*once, limits=Limits(trials_left=0)) == ""
    assert repeat(*once, limits=Limits(seconds_left=0)) == ""
    assert repeat(*once, limits=Limits(trials_left=1)) == "c", "few trials search"
    five = [*once, ("d", 1.5), ("d", 1.5), ("d", 1.5)]
    assert repeat(*five, limits=Limits(trials_left=2)) == "c"
    assert repeat(*five, limits=Limits(trials_left=1)) == "a"
