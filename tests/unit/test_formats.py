"""Numbers, durations and counts as people read them."""

from __future__ import annotations

import pytest

from flagscale.formats import count, duration, quantity


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7.46, "7.46"),
        (-310.2, "-310"),
        (999.4, "999"),
        (999.5, "1k"),
        (3120, "3.12k"),
        (999_499, "999k"),
        (2.5e6, "2.5M"),
        (7e9, "7G"),
        (7e12, "7T"),
    ],
)
def test_quantity(number: float, text: str) -> None:
    assert quantity(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (63.4, "1m03s"), (3600, "1h00m"), (90061, "25h01m")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(1, "host", "1 host"), (2, "host", "2 hosts"), (0, "rank", "0 ranks"), (2, "process", "2 processes")],
)
def test_count(number: int, noun: str, text: str) -> None:
    assert count(number, noun) == text
