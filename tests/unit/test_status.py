"""The status of a job, as text and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import pytest

from flagscale.run.failure import Failure
from flagscale.run.state import Attempt, HostState, Phase, from_dict
from flagscale.status.model import JobStatus, job_status, status_json
from flagscale.status.progress import Evaluation, Progress
from flagscale.status.text import failure_lines, plan_text, started_text, status_text
from flagscale.values import LaunchPlan
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
def test_the_phase_of_a_job_follows_from_its_hosts(
    plan: LaunchPlan, phases: tuple[Phase | None, ...], together: str
) -> None:
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


def test_a_failed_run_that_is_still_ending_is_not_a_success(plan: LaunchPlan) -> None:
    hosts = [
        host_status(plan, 0, "stopping", Failure("the supervisor was killed")),
        host_status(plan, 1, "running"),
    ]
    found = job_status(plan, hosts, None)
    assert (found.phase, found.ended, found.exit_code) == ("stopping", False, 1)


def test_the_first_failing_rank_is_the_cause(plan: LaunchPlan) -> None:
    victim = Failure("the agent ended with exit code 1", time=5.0)
    late, cause = Failure("late", rank=0, time=9.0), Failure("cause", rank=2, time=7.0)
    for failures in ((victim, cause), (late, cause), (cause, late)):
        hosts = [host_status(plan, rank, "failed", failure) for rank, failure in enumerate(failures)]
        found = job_status(plan, hosts, None)
        assert found.failure is not None
        assert found.failure[1] is cause


def test_a_failure_caused_elsewhere_is_never_the_cause(plan: LaunchPlan) -> None:
    victim = Failure("ended because of node1: rank 2: boom", time=3.0, is_victim=True)
    wounded = Failure("connection closed by peer", rank=0, time=2.0, is_victim=True)
    launcher, cause = Failure("the agent was killed", time=9.0), Failure("boom", rank=2, time=11.0)
    for first, second, expected in (
        (victim, cause, cause),
        (wounded, cause, cause),
        (victim, launcher, launcher),
        (wounded, launcher, launcher),
        (victim, wounded, wounded),
        (launcher, cause, cause),
    ):
        for failures in ((first, second), (second, first)):
            hosts = [host_status(plan, rank, "failed", failure) for rank, failure in enumerate(failures)]
            found = job_status(plan, hosts, None)
            assert found.failure is not None
            assert found.failure[1] is expected


def test_the_cause_is_the_host_that_most_others_lost(tmp_path: Path) -> None:
    """The host that is cut off has lost the others, and may have noticed that first."""
    plan = make_plan(tmp_path, 1, 1, 1)
    silent = "nothing was heard from it for 4 s"
    its_own = Failure(f"ended because of node0: {silent}", time=1.0, is_victim=True)
    true = [Failure(f"ended because of node1: {silent}", time=when, is_victim=True) for when in (2.0, 3.0)]
    failures = (true[0], its_own, true[1])
    hosts = [host_status(plan, rank, "failed", failure) for rank, failure in enumerate(failures)]
    assert job_status(plan, hosts, None).failure == ("node0", true[0])
    hosts = [
        replace(host, state=host.state.changed(attempts=(Attempt(0, 1.0, 2.0, failure),)))
        for host, failure in zip(hosts, failures, strict=True)
        if host.state
    ]
    (attempt,) = status_json(job_status(plan, hosts, None))["attempts"]
    assert attempt["failure"]["message"] == true[0].message


EVALUATED = {"validation_loss/web": Evaluation(5.5, 2), "test_loss": Evaluation(float("nan"), 3)}


def test_text_of_a_failed_job(plan: LaunchPlan) -> None:
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
    assert status_text(job_status(plan, hosts, Progress({"iteration": 3}, None, EVALUATED))).splitlines() == [
        "demo: failed  (4 ranks on 2 hosts, tp2 x dp2, run demo-1)",
        "  iteration 3",
        "  validation loss web 5.5000 at iteration 2",
        "  test loss nan at iteration 3",
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


def test_status_json_is_valid_even_for_a_nan_loss(plan: LaunchPlan) -> None:
    hosts = [host_status(plan, 0, "running", processes=6), host_status(plan, 1, None, trouble="no route")]
    progress = Progress({"iteration": 3, "lm_loss": float("nan")}, 4.5, EVALUATED)
    reported = status_json(job_status(plan, hosts, progress))
    assert json.loads(json.dumps(reported, allow_nan=False)) == {
        "state": "unknown",
        "reason": "",
        "name": "demo",
        "run_id": "demo-1",
        "exp_dir": "/runs/demo",
        "metrics": {"iteration": 3, "lm_loss": None},
        "seconds_left": 4.5,
        "evaluations": {
            "validation_loss/web": {"value": 5.5, "iteration": 2},
            "test_loss": {"value": None, "iteration": 3},
        },
        "failure": None,
        "attempts": [],
        "programs": [],
        "endpoints": [],
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


def test_each_attempt_is_reported_once_with_its_cause(plan: LaunchPlan) -> None:
    victim = Failure("ended because of node1: rank 2: boom", is_victim=True)
    first, second = Failure("boom", rank=2), Failure("the agent was killed by SIGKILL")
    of_hosts = [
        (Attempt(0, 1.0, 2.0, victim), Attempt(1, 3.0, 4.0, second)),
        (Attempt(0, 1.0, 2.0, first), Attempt(1, 3.0, 4.0, victim)),
    ]
    hosts = [
        replace(host, state=host.state.changed(attempts=attempts))
        for rank, attempts in enumerate(of_hosts)
        if (host := host_status(plan, rank, "running")).state
    ]
    found = job_status(plan, hosts, None)
    assert found.exit_code == 0
    lines = [line for line in status_text(found).splitlines() if "  attempt " in line]
    assert [line.partition(": host ")[2] for line in lines] == [
        "node1: boom",
        "node0: the agent was killed by SIGKILL",
    ]
    reported = json.loads(json.dumps(status_json(found)))["attempts"]
    assert [(one["host"], one["number"], one["failure"]["message"]) for one in reported] == [
        ("node1", 0, "boom"),
        ("node0", 1, "the agent was killed by SIGKILL"),
    ]


def test_texts_of_a_plan_and_a_start(plan: LaunchPlan) -> None:
    text = plan_text(plan, "a: 1\n")
    assert text.startswith("demo: 4 ranks on 2 hosts, tp2 x dp2\n  host 0  node0  2 ranks  chip\n")
    assert "# /runs/demo/config.yaml\na: 1\n" in text
    assert text.count("#!/usr/bin/env bash") == 4
    started = started_text(plan)
    assert "demo: 4 ranks on 2 hosts (tp2 x dp2), run demo-1" in started
    assert "/runs/demo/metrics.jsonl" in started


def test_a_host_that_a_restart_left_out_does_not_count() -> None:
    plan = make_plan(Path("/run"), 1, 1, 1)
    first, second = (host_status(plan, rank, "running") for rank in (0, 1))
    assert first.state
    first = replace(first, state=first.state.changed(members=(0, 1)))
    for third in (
        host_status(plan, 2, "failed", Failure("this host was too late")),
        host_status(plan, 2, None, trouble="no answer"),
    ):
        status = job_status(plan, [first, second, third], None)
        assert (status.phase, status.failure, status.exit_code) == ("running", None, 0)
        assert "host 2  node2  left out" in status_text(status)
    assert HostState("x", "running", members=(0, 2)) == from_dict(
        json.loads(json.dumps(asdict(HostState("x", "running", members=(0, 2)))))
    )
