"""What people and programs are told."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest

from flagscale.job import LaunchPlan
from flagscale.node.state import Failure, Phase
from flagscale.progress import Progress
from flagscale.report import (
    JobStatus,
    failure_lines,
    job_status,
    plan_text,
    started_text,
    status_json,
    status_text,
)
from tests.unit.plans import host_status, make_plan

PHASES: tuple[Phase | None, ...] = ("starting", "running", "stopping", "finished", "failed", "stopped", None)


@pytest.fixture
def plan() -> LaunchPlan:
    return make_plan(Path("/runs/demo"), 2, 2)


def status(plan: LaunchPlan, *phases: Phase | None) -> JobStatus:
    return job_status(plan, [host_status(plan, rank, phase) for rank, phase in enumerate(phases)], None)


@pytest.mark.parametrize(
    ("phases", "together"),
    [
        (("running", "running"), "running"),
        (("running", "starting"), "starting"),
        (("running", "finished"), "running"),
        (("running", "failed"), "failed"),
        (("running", None), "unknown"),
        (("stopping", "stopped"), "stopping"),
        (("finished", "stopped"), "stopped"),
        (("finished", "finished"), "finished"),
        (("failed", "stopped"), "failed"),
        (("failed", None), "failed"),
        ((None, None), "unknown"),
    ],
)
def test_the_hosts_together(plan: LaunchPlan, phases: tuple[Phase | None, ...], together: str) -> None:
    assert status(plan, *phases).phase == together
    assert status(plan, *reversed(phases)).phase == together


def test_every_combination_has_a_phase_an_end_and_an_exit_code(plan: LaunchPlan) -> None:
    for phases in product(PHASES, PHASES):
        found = status(plan, *phases)
        waiting = {"starting", "running", "stopping"} & set(phases)
        assert found.ended == (not waiting)
        assert found.exit_code == (1 if "failed" in phases or None in phases else 0)


def test_a_host_that_cannot_be_asked_is_waited_for(plan: LaunchPlan) -> None:
    hosts = [host_status(plan, 0, "finished"), host_status(plan, 1, None, trouble="connection refused")]
    found = job_status(plan, hosts, None)
    assert (found.phase, found.ended, found.exit_code) == ("unknown", False, 1)
    assert "host 1  node1  unknown  connection refused" in status_text(found)


def test_a_run_that_is_being_ended_after_a_failure_is_no_success(plan: LaunchPlan) -> None:
    hosts = [
        host_status(plan, 0, "stopping", Failure("the supervisor was killed")),
        host_status(plan, 1, "running"),
    ]
    found = job_status(plan, hosts, None)
    assert (found.phase, found.ended, found.exit_code) == ("stopping", False, 1)


def test_the_first_failing_rank_is_the_cause(plan: LaunchPlan) -> None:
    victim = Failure("the launcher ended with exit code 1", time=5.0)
    late, cause = Failure("late", rank=0, time=9.0), Failure("cause", rank=2, time=7.0)
    for failures in ((victim, cause), (late, cause), (cause, late)):
        hosts = [host_status(plan, rank, "failed", failure) for rank, failure in enumerate(failures)]
        found = job_status(plan, hosts, None)
        assert found.failure is not None
        assert found.failure[1] is cause


def test_status_text(plan: LaunchPlan) -> None:
    failure = Failure(
        "ValueError: no",
        rank=2,
        local_rank=0,
        traceback="Traceback:\n  line\nValueError: no\n",
        log="/l/stderr.log",
    )
    hosts = [
        host_status(plan, 0, "running", processes=1),
        host_status(plan, 1, "failed", failure, processes=5),
    ]
    assert status_text(job_status(plan, hosts, Progress({"iteration": 3}, None))).splitlines() == [
        "demo: failed  (4 ranks on 2 hosts, tp2 x dp2, run demo-1)",
        "  iteration 3",
        "  host 0  node0  running  1 process",
        "  host 1  node1  failed  5 processes",
        "  first failure: host node1, rank 2: ValueError: no",
        "    Traceback:",
        "      line",
        "    ValueError: no",
        "  log of the rank: /l/stderr.log",
        "  log of the host: /runs/demo/logs/host_1_node1.output",
    ]
    assert "host 0  node0  unknown  nothing was started here yet" in status_text(status(plan, None, None))
    assert failure_lines(status(plan, "finished", "finished")) == []


def test_status_json_is_json_also_for_a_diverged_loss(plan: LaunchPlan) -> None:
    hosts = [host_status(plan, 0, "running", processes=6), host_status(plan, 1, None, trouble="no route")]
    told = status_json(job_status(plan, hosts, Progress({"iteration": 3, "lm_loss": float("nan")}, 4.5)))
    assert json.loads(json.dumps(told, allow_nan=False)) == {
        "state": "unknown",
        "name": "demo",
        "run_id": "demo-1",
        "exp_dir": "/runs/demo",
        "metrics": {"iteration": 3, "lm_loss": None},
        "seconds_left": 4.5,
        "failure": None,
        "hosts": [
            {"rank": 0, "name": "node0", "state": "running", "processes": 6, "trouble": ""},
            {"rank": 1, "name": "node1", "state": "unknown", "processes": 0, "trouble": "no route"},
        ],
    }
    failed = job_status(
        plan, [host_status(plan, 0, "failed", Failure("x", rank=1)), host_status(plan, 1, "failed")], None
    )
    assert status_json(failed)["failure"]["host"] == "node0"
    assert status_json(failed)["failure"]["rank"] == 1


def test_plan_and_start(plan: LaunchPlan) -> None:
    text = plan_text(plan, "a: 1\n")
    assert text.startswith("demo: 4 ranks on 2 hosts, tp2 x dp2\n  host 0  node0  2 ranks  chip\n")
    assert "# /runs/demo/config.yaml\na: 1\n" in text
    assert text.count("#!/usr/bin/env bash") == 4
    started = started_text(plan)
    assert "demo: 4 ranks on 2 hosts (tp2 x dp2), run demo-1" in started
    assert "/runs/demo/metrics.jsonl" in started
