"""How servers and batches are shown, and when their job counts as running."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from flagscale.run.state import ServicePhase, ServiceState, from_json, to_json
from flagscale.status.model import job_status, status_json
from flagscale.status.services import change
from flagscale.status.text import plan_text, service_lines, started_text
from flagscale.values import LaunchPlan, Service
from tests.unit.plans import host_status, make_plan


@pytest.fixture
def plan() -> LaunchPlan:
    """Two servers on one host."""
    plan = make_plan(Path("/runs/demo"), 2)
    servers = tuple(
        Service(f"one.{number}", ("python", "server"), f"http://127.0.0.1:{8000 + number}", "m")
        for number in range(2)
    )
    return replace(plan, nodes=(replace(plan.nodes[0], services=servers),))


def state(number: int, phase: ServicePhase, **more: object) -> tuple[str, ServiceState]:
    one = ServiceState(f"one.{number}", phase, f"http://127.0.0.1:{8000 + number}", "m", since=time.time())
    return "localhost", replace(one, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        (None, None, "starting"),
        ("ready", None, "starting"),
        ("ready", "starting", "starting"),
        ("ready", "ready", "running"),
        ("ready", "unhealthy", "running"),
        ("ready", "failed", "stopping"),
        ("failed", "starting", "stopping"),
    ],
)
def test_a_job_of_servers_runs_once_all_have_answered(
    plan: LaunchPlan, first: ServicePhase | None, second: ServicePhase | None, together: str
) -> None:
    reported = [state(number, phase) for number, phase in enumerate((first, second)) if phase]
    assert job_status(plan, [host_status(plan, 0, "running")], None, reported).phase == together
    assert job_status(plan, [host_status(plan, 0, "failed")], None, reported).phase == "failed"


def test_one_line_per_service() -> None:
    batch = ("gpu-1", ServiceState("generate", "running", done=3, total=8, tokens_per_s=1234.0))
    ready = state(1, "ready", requests_running=2, requests_waiting=1, tokens_per_s=310.4)
    loading = state(0, "starting", last_line="Loading weights: 40 %")
    assert service_lines([loading, ready, batch]) == [
        "one.0     http://127.0.0.1:8000  starting for 0s: Loading weights: 40 %",
        "one.1     http://127.0.0.1:8001  ready  2 running, 1 waiting  310 tokens/s  model m",
        "generate  gpu-1                  running  3/8 prompts  1.23k tokens/s",
    ]
    assert service_lines([]) == []


def test_a_change_of_speed_is_not_news() -> None:
    ready = state(0, "ready", tokens_per_s=1.0)
    assert change([ready]) == change([(ready[0], replace(ready[1], tokens_per_s=2.0))])
    assert change([ready]) != change([state(0, "unhealthy")])
    assert change([state(0, "running", done=1)]) != change([state(0, "running", done=2)])


def test_only_states_of_the_same_run_are_read() -> None:
    _, one = state(0, "ready")
    text = to_json("run-1", [one]).encode()
    assert from_json(text, "run-1") == (one,)
    assert from_json(text, "run-2") == ()
    for other in (b"", b"{", b"[]", b'{"run_id": "run-1"}', text.replace(b"phase", b"phrase")):
        assert from_json(other, "run-1") == ()


def test_texts_of_a_job_of_services(plan: LaunchPlan) -> None:
    assert "  m  http://127.0.0.1:8001/v1" in started_text(plan)
    assert "checkpoints" not in started_text(plan)
    text = plan_text(plan, "config")
    assert "demo: 2 services on 1 host" in text
    assert "# service one.1\n#   python server\n" in text
    reported = status_json(job_status(plan, [host_status(plan, 0, "running")], None, [state(0, "ready")]))
    assert reported["programs"][0]["host"] == "localhost"
    assert reported["programs"][0]["url"] == "http://127.0.0.1:8000"
