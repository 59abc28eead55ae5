"""Which hosts a stop asks, and what it makes of their replies."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flagscale.remote import launcher
from flagscale.run.rundir import RunDir
from flagscale.run.state import HostState, Reply
from flagscale.values import LaunchPlan
from tests.unit.plans import FakeHosts, make_plan

STOPPED: Reply = {"ok": True, "ended": True, "message": "stopped"}
NOTHING: Reply = {"ok": True, "ended": False, "message": "nothing was running"}
LOST: Reply = {"ok": False, "message": "no answer from node0 port 22 within 10 s", "unreachable": True}
RUNNING: Reply = {"phase": "running", "members": (), "processes": 0}


@pytest.fixture
def plan(tmp_path: Path) -> LaunchPlan:
    return make_plan(tmp_path / "run", 1, 1, 1)


def stop(plan: LaunchPlan) -> dict[int, Reply]:
    return {host.rank: reply for host, reply in launcher.stop(plan).items()}


def hosts(monkeypatch: pytest.MonkeyPatch, status: Any, first: Any, **others: Any) -> FakeHosts:
    """Return three hosts; those that are not in `others` must not be asked."""
    known = {name: {"stop": reply} for name, reply in others.items()}
    return FakeHosts(
        monkeypatch, **{"node0": {"status": status, "stop": first}, "node1": {}, "node2": {}} | known
    )


def test_hosts_that_ended_with_the_first_one_are_not_asked(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts(monkeypatch, RUNNING, {**STOPPED, "ended_with": [1, 2]})
    assert stop(plan) == dict.fromkeys(range(3), STOPPED)


def test_a_host_that_did_not_confirm_its_end_is_asked(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = {"ok": False, "ended": True, "message": "could not be killed: 7 (python)"}
    hosts(monkeypatch, RUNNING, {**STOPPED, "ended_with": [2]}, node1=stuck)
    assert stop(plan) == {0: STOPPED, 1: stuck, 2: STOPPED}


@pytest.mark.parametrize(
    "status",
    [
        {"phase": "starting", "members": (), "processes": 0},
        {"phase": "failed", "members": (), "processes": 0},
        {"processes": 0},
        {"ok": False, "message": "the state cannot be read"},
    ],
)
def test_all_hosts_are_asked_at_once_if_the_first_one_does_not_run_the_job(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch, status: Reply
) -> None:
    all_asked = threading.Barrier(3)

    def reply(words: list[str]) -> Reply:
        all_asked.wait(60)
        return dict(NOTHING)

    hosts(monkeypatch, status, reply, node1=reply, node2=reply)
    assert stop(plan) == dict.fromkeys(range(3), NOTHING)


def test_a_host_that_was_left_out_by_a_restart_is_asked_at_once(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def left_out(words: list[str]) -> Reply:
        asked.set()
        return dict(NOTHING)

    def first(words: list[str]) -> Reply:
        assert asked.wait(60)
        return {**STOPPED, "ended_with": [2]}

    hosts(monkeypatch, {**RUNNING, "members": [0, 2]}, first, node1=left_out)
    assert stop(plan) == {0: STOPPED, 1: NOTHING, 2: STOPPED}


def test_all_others_are_asked_if_the_first_host_is_not_reached(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = hosts(monkeypatch, LOST, None, node1=STOPPED, node2=STOPPED)
    assert stop(plan) == {0: LOST, 1: STOPPED, 2: STOPPED}
    assert asked.verbs("node0") == ["status"], "it is not waited for twice"


@pytest.mark.parametrize("last", [{**STOPPED, "ended_with": [1, 2]}, LOST])
def test_the_others_do_not_wait_for_a_first_host_that_is_slow(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch, last: Reply
) -> None:
    monkeypatch.setattr(launcher, "_FIRST_ANSWER", 0.1)
    others_asked = threading.Barrier(3)

    def slow(words: list[str]) -> Reply:
        others_asked.wait(60)
        return dict(RUNNING)

    def other(words: list[str]) -> Reply:
        others_asked.wait(60)
        return dict(NOTHING)

    hosts(monkeypatch, slow, last, node1=other, node2=other)
    replies = stop(plan)
    # Their sessions found nothing only because the first host had ended it.
    assert [replies[rank] for rank in (1, 2)] == [STOPPED if last["ok"] else NOTHING] * 2


@pytest.mark.parametrize("changes", [{"after_stop": "true"}, {"channel": None}])
def test_every_host_is_asked_if_it_has_lines_to_run_or_a_job_of_its_own(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    asked = hosts(monkeypatch, None, STOPPED, node1=STOPPED, node2=STOPPED)
    assert stop(replace(plan, **changes)) == dict.fromkeys(range(3), STOPPED)
    assert asked.verbs("node0") == ["stop"]


def test_a_start_after_a_stop_that_has_verified_all_hosts_asks_none(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RunDir(Path(plan.exp_dir))
    files.write_launch(plan, {}, "", {})
    asked = FakeHosts(monkeypatch, **{host.name: {"status": {"processes": 0}} for host in plan.hosts})
    stopped = HostState(plan.run_id, "stopped", is_tidied=True, ended_with=(1, 2))
    for state in (
        stopped.changed(ended_with=(1,)),
        stopped.changed(is_tidied=False),
        stopped.changed(run_id="another"),
        stopped.changed(phase="running"),
    ):
        state.write(files.state(plan.hosts[0]))
        launcher.refuse_if_running(files, plan)
        assert {host for host, _ in asked.asked} == {"node0", "node1", "node2"}, state
        asked.asked.clear()
    stopped.write(files.state(plan.hosts[0]))
    launcher.refuse_if_running(files, plan)
    assert not asked.asked
