"""The benchmark of flows: counting files and switches of calls, and the interval of a mean."""

from __future__ import annotations

from benchmarks.flows import Flow, flow_of, interval


def test_a_switch_enters_another_file_in_the_same_thread() -> None:
    assert flow_of([]) == Flow(files=0, switches=0)
    assert flow_of([(1, "a"), (1, "a"), (1, "b"), (1, "b"), (1, "a")]) == Flow(files=2, switches=2)
    assert flow_of([(1, "a"), (2, "b"), (1, "a"), (2, "b")]) == Flow(files=2, switches=0)


def test_the_interval_of_a_mean() -> None:
    # The mean of 100 coin flips between 0 and 2: 1, give or take 1.96 standard errors of 0.1.
    low, high = interval([0.0, 2.0] * 50)
    assert 0.78 < low < 0.83
    assert 1.17 < high < 1.22
    assert interval([1.5] * 10) == (1.5, 1.5)
