"""Numbers, times, memory, counts and names for people."""

from __future__ import annotations

import pytest

from flagscale.formats import bytes_text, count, duration, option_of, quantity, seconds_text


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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0 s"),
        (3.2e-5, "32 us"),
        (0.0456, "45.6 ms"),
        (0.131, "131 ms"),
        (1.93, "1.93 s"),
        (12.34, "12.3 s"),
        (1234.5, "1234 s"),
    ],
)
def test_seconds(seconds: float | None, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (None, "-"),
        (0, "0 MiB"),
        (131 * 2**20, "131 MiB"),
        (3.123 * 2**30, "3.12 GiB"),
        (61.23 * 2**30, "61.2 GiB"),
    ],
)
def test_bytes(nbytes: float | None, text: str) -> None:
    assert bytes_text(nbytes) == text


def test_an_argument_as_an_option() -> None:
    assert option_of("lora_rank") == "--lora-rank"
