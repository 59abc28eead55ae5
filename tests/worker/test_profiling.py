"""The clock of a profile in one process: rounds, sizes that are left out, memory, missing operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from megatron.flagscale.profiling import clock as clock_module
from megatron.flagscale.profiling.clock import Clock, Effort, UnsupportedError
from megatron.flagscale.profiling.kernels import products

EFFORT = Effort(rounds=3, round_s=1.0, call_s=1.0, part_s=1000.0)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Callable[[], None]]:
    """A function that makes calls of a duration, on a clock that only they move."""
    now = [0.0]
    monkeypatch.setattr(clock_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def lasting(seconds: float) -> Callable[[], None]:
        def call() -> None:
            now[0] += seconds

        return call

    return lasting


def test_short_calls_are_repeated_and_a_delayed_round_does_not_count(
    time: Callable[[float], Callable[[], None]],
) -> None:
    calls = [0]
    short, delay = time(0.125), time(50.0)

    def call() -> None:
        calls[0] += 1
        short()
        if calls[0] == 10:  # in the first round
            delay()

    assert Clock(EFFORT).seconds(lambda: call) == 0.125
    assert calls[0] == 1 + 1 + 2 + 3 * 8


def test_a_part_ends_after_its_time(time: Callable[[float], Callable[[], None]]) -> None:
    clock = Clock(EFFORT)
    clock.begin_part()
    assert clock.is_short(1.0)
    assert not clock.is_short(1.1)
    time(1001.0)()
    assert not clock.is_short(1e-6)
    clock.begin_part()
    assert clock.is_short(1e-6)


def test_too_little_memory_and_a_missing_operation_are_told_apart() -> None:
    def too_large() -> Callable[[], object]:
        raise torch.OutOfMemoryError

    def missing() -> Callable[[], object]:
        raise NotImplementedError("no kernel for it\nlong explanation")

    assert Clock(EFFORT).seconds(too_large) == math.inf
    with pytest.raises(UnsupportedError, match=r"^no kernel for it$"):
        Clock(EFFORT).seconds(missing)


def test_large_sizes_are_left_out_and_counted() -> None:
    clock = Clock(Effort(rounds=1, round_s=0.0, call_s=2e-4, part_s=60.0))
    rows = [*products(clock, "float32")]
    assert len(rows) == 5**3
    measured = [row for row in rows if row]
    assert measured[0][:3] == [64, 64, 64]
    assert [16384.0, 16384.0, 16384.0] not in [row[:3] for row in measured]
    assert all(row[3] > 0 for row in measured)


def test_an_accelerator_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    kind = clock_module.chip()
    monkeypatch.setattr(clock_module, "chip", lambda: replace(kind, is_host_processor=False))
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: waits.append(1))
    Clock(EFFORT).seconds(lambda: lambda: None)
    assert len(waits) >= 2 * EFFORT.rounds
