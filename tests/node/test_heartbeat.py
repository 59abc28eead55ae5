"""Ranks that do not go on are noticed by this host's own clock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flagscale.node import agent
from flagscale.node.agent import Heartbeat


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [50.0]
    monkeypatch.setattr(agent.time, "monotonic", lambda: clock[0])
    return clock


def touch(heartbeat: Path, written: float) -> None:
    """As a file server does whose clock says so."""
    heartbeat.touch()
    os.utime(heartbeat, (written, written))


@pytest.mark.parametrize("server", [0.0, 1e9, 4e9])
def test_only_what_changes_counts(tmp_path: Path, now: list[float], server: float) -> None:
    """Whatever the file server takes the time to be."""
    heartbeat = tmp_path / "heartbeat"
    watched = Heartbeat(heartbeat, 5.0)
    now[0] += 604
    assert not watched.is_overdue(), "the first iteration takes its time"
    for step in range(1, 4):
        touch(heartbeat, server + step)
        assert not watched.is_overdue()
        now[0] += 4
    assert not watched.is_overdue()
    now[0] += 2
    assert watched.is_overdue()
    touch(heartbeat, server)  # it was set back
    assert not watched.is_overdue()


def test_the_beats_of_an_earlier_attempt_are_none(tmp_path: Path, now: list[float]) -> None:
    heartbeat = tmp_path / "heartbeat"
    touch(heartbeat, 1e9)
    watched = Heartbeat(heartbeat, 5.0)
    now[0] += 6
    assert not watched.is_overdue()
    now[0] += 600
    assert watched.is_overdue()


def test_without_a_limit_nothing_is_overdue(tmp_path: Path, now: list[float]) -> None:
    watched = Heartbeat(tmp_path / "heartbeat", None)
    now[0] += 1e9
    assert not watched.is_overdue()
