"""How an endpoint and its instances are shown, and what their states mean for the job."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flagscale.run.failure import Failure
from flagscale.run.state import ServicePhase, ServiceState, from_json, to_json
from flagscale.status.model import job_status
from flagscale.status.services import change, endpoints, first_of_lost, in_order, is_given_up, servers
from flagscale.status.text import service_lines, started_text
from flagscale.values import LaunchPlan, Service
from tests.unit.plans import host_status, make_plan

KILLED = Failure(
    "`chat.1` was killed by SIGKILL", signal="SIGKILL", log="/runs/chat.1.log", time=5.0, is_final=True
)
MEMORY = replace(KILLED, message="`chat.0` ran out of memory", log="/runs/chat.0.log", time=3.0)


@pytest.fixture
def plan() -> LaunchPlan:
    """Two instances behind one address, and a server of its own."""
    plan = make_plan(Path("/runs/demo"), 2)
    services = (
        Service("chat", (), "http://h:8000", "m"),
        Service("chat.0", (), "http://h:8001", "m", behind="chat"),
        Service("chat.1", (), "http://h:8002", "m", behind="chat"),
        Service("draft", (), "http://h:9000", "d"),
    )
    return replace(plan, nodes=(replace(plan.nodes[0], services=services),))


def state(name: str, phase: ServicePhase, host: str = "h", **more: object) -> tuple[str, ServiceState]:
    port = {"chat": 8000, "chat.0": 8001, "chat.1": 8002, "draft": 9000}[name]
    behind = "chat" if "." in name else ""
    one = ServiceState(name, phase, f"http://{host}:{port}", "m", since=time.time(), behind=behind)
    return host, replace(one, **more)  # type: ignore[arg-type]


LOADED = {"requests_running": 2, "requests_waiting": 1, "tokens_per_s": 310.4}


def degraded() -> list[tuple[str, ServiceState]]:
    return [
        state("chat.1", "failed", "k", failure=KILLED, since=time.time() - 7210),
        state("chat", "ready"),
        state("chat.0", "ready", **LOADED),
    ]


def test_an_endpoint_comes_before_its_instances_with_the_sums_of_their_load() -> None:
    both = [state("chat.1", "ready", **LOADED), state("chat", "ready"), state("chat.0", "ready", **LOADED)]
    assert service_lines([*both, state("draft", "starting", last_line="Loading")]) == [
        "chat      http://h:8000  2 of 2 instances ready  4 running, 2 waiting  621 tokens/s  model m",
        "  chat.1  http://h:8002  ready  2 running, 1 waiting  310 tokens/s  model m",
        "  chat.0  http://h:8001  ready  2 running, 1 waiting  310 tokens/s  model m",
        "draft     http://h:9000  starting for 0s: Loading",
    ]


def test_a_degraded_endpoint_is_visible_at_once() -> None:
    assert service_lines(degraded()) == [
        "chat      http://h:8000  1 of 2 instances ready  2 running, 1 waiting  310 tokens/s  model m",
        f"  chat.1  http://k:8002  failed 2h00m ago on k  {KILLED.message}  log {KILLED.log}",
        "  chat.0  http://h:8001  ready on h  2 running, 1 waiting  310 tokens/s  model m",
    ]
    (endpoint,) = endpoints(degraded())
    reported = endpoint.to_json()
    assert reported["url"] == "http://h:8000"
    assert (reported["instances"], reported["ready"]) == (["chat.1", "chat.0"], 1)
    assert (reported["requests_running"], reported["requests_waiting"]) == (2, 1)


def test_a_restart_is_shown_with_its_number_and_its_reason() -> None:
    again = state("chat.1", "restarting", restarts=2, failure=KILLED, last_line="Loading")
    reason = "`chat.1` was killed by SIGKILL  log /runs/chat.1.log"
    assert service_lines([again])[0].endswith(f"restart 2 for 0s: Loading  {reason}")
    back = state("chat.1", "ready", restarts=2, failure=KILLED)
    assert service_lines([back])[0].endswith("ready  model m  2 restarts")
    assert change([again]) != change([state("chat.1", "restarting", restarts=1)])


@pytest.mark.parametrize(
    ("phases", "together"),
    [
        (["ready", "ready", "ready"], "running"),
        (["ready", "ready", "starting"], "starting"),
        (["ready", "ready", "restarting"], "running"),
        (["restarting", "ready", "ready"], "running"),
        (["ready", "ready", "failed"], "running"),
        (["unhealthy", "restarting", "failed"], "running"),
        (["failed", "ready", "ready"], "stopping"),
        (["ready", "ready", "failed while it loaded"], "stopping"),
        (["stopped", "failed", "failed"], "stopping"),
        (["stopped", "ready", "ready"], "stopping"),
    ],
)
def test_a_job_runs_on_without_an_instance(plan: LaunchPlan, phases: list[Any], together: str) -> None:
    names = ("chat", "chat.0", "chat.1")
    reported = [state(name, phase, failure=KILLED) for name, phase in zip(names, phases, strict=True)]
    if phases[2] == "failed while it loaded":
        reported[2] = state("chat.1", "failed", failure=replace(KILLED, is_final=False))
    reported.append(state("draft", "ready"))
    status = job_status(plan, [host_status(plan, 0, "running")], None, reported)
    assert (status.phase, status.exit_code) == (together, 0)


def test_an_instance_is_given_up_once_no_restart_can_bring_it_back() -> None:
    assert [is_given_up(one) for _, one in degraded()] == [True, False, False]
    assert not is_given_up(state("chat.1", "restarting", failure=KILLED)[1])
    assert not is_given_up(state("chat", "failed", failure=KILLED)[1])


def test_the_first_instance_that_failed_is_the_cause_if_none_is_left(plan: LaunchPlan) -> None:
    lost = [
        state("chat", "stopped"),
        state("chat.1", "failed", failure=KILLED),
        state("chat.0", "failed", "k", failure=MEMORY),
    ]
    assert first_of_lost(lost) == ("k", MEMORY)
    assert first_of_lost(degraded()) is None
    failed = job_status(plan, [host_status(plan, 0, "failed")], None, lost)
    assert failed.failure == ("k", MEMORY)
    # A job that was stopped, and one that another server ended, have causes of their own.
    assert job_status(plan, [host_status(plan, 0, "stopped")], None, lost).failure is None
    assert first_of_lost([*lost[:2], state("chat.0", "stopped", failure=MEMORY)]) is None


def test_clients_are_given_the_address_of_the_endpoint(plan: LaunchPlan) -> None:
    assert servers(plan) == [("m", "http://h:8000"), ("d", "http://h:9000")]
    assert "http://h:8001" not in started_text(plan)


def test_parts_follow_their_instance() -> None:
    part = ("k", ServiceState("chat.0.part1", "running", behind="chat.0"))
    ordered = in_order([part, state("chat.0", "ready"), state("chat", "ready")])
    assert [(depth, one.name) for depth, (_, one) in ordered] == [
        (0, "chat"),
        (1, "chat.0"),
        (2, "chat.0.part1"),
    ]
    # Without its router's state, as when that host cannot be asked.
    assert [depth for depth, _ in in_order([part, state("chat.0", "ready")])] == [0, 1]


def test_failures_of_services_are_read_back() -> None:
    _, one = degraded()[0]
    assert from_json(to_json("run-1", [one]).encode(), "run-1") == (one,)
