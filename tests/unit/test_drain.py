"""How long services may take to end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flagscale.node import drain, health
from flagscale.node.instances import Kind
from flagscale.values import Service
from flagscale_testing.jobs.plans import fake_plan


class Deaf:
    """A service that ends only by SIGKILL."""

    idle_at = 0.0

    def __init__(self, service: Service, kind: Kind, has_answered: bool) -> None:
        self.service, self.kind, self.has_answered = service, kind, has_answered
        self.code: int | None = None
        self.process = SimpleNamespace(send_signal=lambda number: None, kill=self._kill)

    def _kill(self) -> None:
        self.code = -9


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    clock.sleep = lambda seconds: setattr(clock, "now", clock.now + seconds)
    monkeypatch.setattr(drain, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("service", "kind", "has_answered", "seconds"),
    [
        (Service("chat", (), "http://h:1"), "joint", True, 25),
        (Service("chat", (), "http://h:1"), "joint", False, 5),
        (Service("chat.part1", (), behind="another host's"), "joint", False, 5),
        (Service("batch", ()), "joint", False, 25),
        (Service("chat", (), "http://h:1"), "router", True, 20),
    ],
    ids=["may have requests", "is loading", "part of a server that has ended", "batch inference", "router"],
)
def test_only_what_may_have_requests_gets_the_time_to_finish_them(
    service: Service, kind: Kind, has_answered: bool, seconds: float, tmp_path: Path, clock: Any
) -> None:
    one: Any = Deaf(service, kind, has_answered)
    drain.end([one], fake_plan(tmp_path, "run", [], start_timeout=1.0), 20.0)
    assert one.code == -9
    assert seconds <= clock.now < seconds + 1


@pytest.mark.parametrize(
    ("url", "answers_for", "seconds"),
    [("http://10.0.0.1:8000", 2, 2), ("http://127.0.0.1:8000", 9, 3), ("http://10.0.0.1:8000", 99, 20)],
    ids=["asked", "on its host's loopback address", "answers too long"],
)
def test_an_instance_outlives_the_router_of_another_host(
    url: str, answers_for: float, seconds: float, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A loopback address is asked on this host, where something else may answer.
    monkeypatch.setattr(health, "check", lambda url, patience: 200 if clock.now < answers_for else None)
    one: Any = Deaf(Service("chat.1", (), "http://10.0.0.2:8002", behind="chat"), "instance", True)
    told = []
    one.process.send_signal = lambda number: told.append(clock.now)
    plan: Any = SimpleNamespace(services=[Service("chat", (), url), one.service])
    drain.end([one], plan, 20.0)
    assert seconds <= told[0] < seconds + 0.5
