"""Ranks that hang are detected by this host's own clock."""

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
    """Set the modification time as a file server with that clock does."""
    heartbeat.touch()
    os.utime(heartbeat, (written, written))


@pytest.mark.parametrize("server", [0.0, 1e9, 4e9])
def test_only_changes_of_the_heartbeat_count(tmp_path: Path, now: list[float], server: float) -> None:
    """The file server's own time does not matter."""
    heartbeat = tmp_path / "heartbeat"
    watched = Heartbeat(heartbeat, 5.0)
    now[0] += 604
    assert not watched.is_overdue(), "the first iteration may take long"
    for step in range(1, 4):
        touch(heartbeat, server + step)
        assert not watched.is_overdue()
        now[0] += 4
    assert not watched.is_overdue()
    now[0] += 2
    assert watched.is_overdue()
    touch(heartbeat, server)  # it was set back
    assert not watched.is_overdue()


def test_the_heartbeat_of_an_earlier_attempt_is_ignored(tmp_path: Path, now: list[float]) -> None:
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
