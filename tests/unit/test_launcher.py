"""All hosts start, or none does: how the launcher reacts to their replies."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flagscale.errors import FlagScaleError, HostError
from flagscale.node.files import unpacked
from flagscale.remote import launcher
from flagscale.remote.hosts import at_once
from flagscale.run.env import CHANNEL_SECRET
from flagscale.run.rundir import RunDir
from flagscale.run.state import HostState, Phase, Reply
from flagscale.values import LaunchPlan
from tests.unit.plans import FakeHosts, make_plan

STARTED: Reply = {"ok": True, "message": "running"}
STOPPED: Reply = {"ok": True, "ended": True, "message": "stopped"}
LOST: Reply = {"ok": False, "message": "no answer from node1 port 22 within 10 s", "unreachable": True}


WAITED = 60.0
"""Seconds after which a host gives up waiting for the others."""


class Waiting:
    """A host whose start waits for the others until it is stopped."""

    def __init__(self) -> None:
        self.asked, self.stopped = threading.Event(), threading.Event()

    def start(self, words: list[str]) -> Reply:
        self.asked.set()
        assert self.stopped.wait(WAITED), "it was not stopped"
        return {"ok": False, "message": "stopped before it started", "stopped": True}

    def stop(self, words: list[str]) -> Reply:
        self.stopped.set()
        return dict(STOPPED)

    def answers(self) -> dict[str, Any]:
        return {"start": self.start, "stop": self.stop}


@pytest.fixture
def plan(tmp_path: Path) -> LaunchPlan:
    return make_plan(tmp_path / "run", 1, 1, 1)


def failing_start(
    plan: LaunchPlan,
    done: launcher.Done | None = None,
    summary: str = "hosts that had started were stopped again",
) -> list[tuple[str, str]]:
    with pytest.raises(HostError, match=summary) as raised:
        launcher.start(plan, "a: 1\n", {}, done)
    return [(problem.where, problem.what) for problem in raised.value.problems]


def test_a_start_reports_its_progress(plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = FakeHosts(monkeypatch, **{host.name: {"start": STARTED} for host in plan.hosts})
    reported: list[tuple[int, int]] = []
    launcher.start(plan, "a: 1\n", {}, lambda done, total: reported.append((done, total)))
    assert reported == [(1, 3), (2, 3), (3, 3)]
    # None is asked to start before all of them are reached.
    assert [words for _, words in hosts.asked[:3]] == [["ready"]] * 3
    assert sorted(words for _, words in hosts.asked[3:]) == [
        ["start", plan.exp_dir, str(rank), plan.run_id] for rank in range(3)
    ]
    assert RunDir(Path(plan.exp_dir)).read_plan() == plan


@pytest.mark.parametrize("reply", [{"ok": False, "message": "no space left"}, LOST])
def test_one_failure_stops_the_others_immediately(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch, reply: Reply
) -> None:
    others = Waiting(), Waiting()

    def fail(words: list[str]) -> Reply:
        assert all(other.asked.wait(WAITED) for other in others)
        return reply

    hosts = FakeHosts(
        monkeypatch,
        node0=others[0].answers(),
        node1={"start": fail, "stop": reply if "unreachable" in reply else STOPPED},
        node2=others[1].answers(),
    )
    began, reported = time.monotonic(), []
    # Hosts that were stopped are not reported as causes, and an unreachable host is reported once.
    assert failing_start(plan, lambda done, total: reported.append(done)) == [("node1", reply["message"])]
    assert time.monotonic() - began < WAITED
    assert reported == []
    for host in plan.hosts:
        assert hosts.verbs(host.name) == ["ready", "start", "stop"]


def test_hosts_that_cannot_be_reached_are_reported_before_any_starts(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = {name: {"ready": {**LOST, "message": f"no answer from {name}"}} for name in ("node1", "node2")}
    hosts = FakeHosts(monkeypatch, node0={}, **lost)
    reported = failing_start(plan, summary="the job was not started:")
    assert reported == [("node[1-2]", "no answer from HOST")]
    assert {words[0] for _, words in hosts.asked} == {"ready"}


def test_hosts_that_hear_of_the_failure_from_the_first_host_need_no_stop(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, asked = Waiting(), threading.Event()

    def hear(words: list[str]) -> Reply:
        asked.set()
        assert first.stopped.wait(WAITED)
        return {"ok": False, "message": "stopped", "stopped": True, "ended": True}

    def fail(words: list[str]) -> Reply:
        assert first.asked.wait(WAITED)
        assert asked.wait(WAITED)
        return {"ok": False, "message": "no space left"}

    hosts = FakeHosts(
        monkeypatch, node0=first.answers(), node1={"start": hear}, node2={"start": fail, "stop": STOPPED}
    )
    assert failing_start(plan) == [("node2", "no space left")]
    assert [hosts.verbs(host.name)[-1] for host in plan.hosts] == ["stop", "start", "stop"]


def test_every_cause_is_reported_in_the_order_of_the_hosts(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_asked, second = threading.Barrier(3), threading.Event()

    def late(words: list[str]) -> Reply:
        all_asked.wait(WAITED)
        assert second.wait(WAITED)
        return {"ok": False, "message": "no such engine"}

    def good(words: list[str]) -> Reply:
        all_asked.wait(WAITED)
        return dict(STARTED)

    def early(words: list[str]) -> Reply:
        all_asked.wait(WAITED)
        return {"ok": False, "message": "no such directory"}

    def stop(words: list[str]) -> Reply:
        second.set()
        return dict(STOPPED)

    stuck: Reply = {"ok": False, "ended": True, "message": "could not be killed: 7 (python)"}
    FakeHosts(
        monkeypatch,
        node0={"start": late, "stop": stop},
        node1={"start": good, "stop": stuck},
        node2={"start": early, "stop": STOPPED},
    )
    assert failing_start(plan) == [
        ("node0", "no such engine"),
        ("node1", "could not be stopped again: could not be killed: 7 (python)"),
        ("node2", "no such directory"),
    ]


def test_ctrl_c_stops_all_hosts(plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"node0": {"start": STARTED, "stop": STOPPED}, "node2": {"start": STARTED, "stop": STOPPED}}
    hosts = FakeHosts(monkeypatch, node1=Waiting().answers(), **answers)

    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launcher.start(plan, "a: 1\n", {}, interrupted)
    assert all(hosts.verbs(host.name)[-1] == "stop" for host in plan.hosts)


def test_hosts_read_their_secrets_from_a_shared_run_directory(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, str]] = []

    def start(words: list[str]) -> Reply:
        path = RunDir(Path(words[1])).secrets(plan.node(int(words[2])).host)
        found.append(json.loads(path.read_text()))
        return dict(STARTED)

    FakeHosts(monkeypatch, **{host.name: {"start": start} for host in plan.hosts})
    launcher.start(plan, "a: 1\n", {"API_KEY": "geheim"})
    assert found[0]["API_KEY"] == "geheim"
    assert len({secrets[CHANNEL_SECRET] for secrets in found}) == 1
    assert len(found[0][CHANNEL_SECRET]) == 64
    left = [path.read_text() for path in Path(plan.exp_dir).rglob("*") if path.is_file()]
    assert not [text for text in left if "geheim" in text or found[0][CHANNEL_SECRET] in text]


def test_a_host_that_does_not_see_the_run_directory_is_sent_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "run"
    plan = make_plan(here, 1, 1, no_shared_fs=True, host_paths={"node1": {str(tmp_path): "/there"}})
    answers: dict[str, Any] = {"vacant": STARTED, "put": STARTED, "start": STARTED}
    hosts = FakeHosts(monkeypatch, node0=answers, node1=answers)
    launcher.start(plan, "a: 1\n", {"API_KEY": "geheim"})
    assert hosts.verbs("node1") == ["vacant", *["put"] * 4, "start"]
    (vacant, *puts, start) = (words for name, words in hosts.asked if name == "node1")
    assert (vacant[1:], start[1:]) == (["/there/run"], ["/there/run", "1", plan.run_id])
    assert {words[1] for words in puts} == {"/there/run"}
    sent = {words[2]: (words[3], unpacked(words[4])) for words in puts}
    assert {name: mode for name, (mode, _) in sent.items()} == {
        "logs/pids/host_1_node1.secrets.json": "600",
        "logs/scripts/host_1_node1_run.sh": "755",
        "logs/scripts/host_1_node1_stop.sh": "755",
        "plan.json": "644",
    }
    # Secrets come after the plan, without which a stop would not find and remove them.
    assert [words[2] for words in puts[-2:]] == ["plan.json", "logs/pids/host_1_node1.secrets.json"]
    # The plan is the same for all hosts: each reads it with its own paths.
    assert LaunchPlan.from_json(sent["plan.json"][1]) == plan
    assert not RunDir(here).secrets(plan.hosts[1]).exists()
    assert "/there/run" in sent["logs/scripts/host_1_node1_run.sh"][1]
    assert [name for name, (_, text) in sent.items() if "geheim" in text] == [
        "logs/pids/host_1_node1.secrets.json"
    ]


def test_a_host_with_a_running_job_is_sent_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(tmp_path, 1, 1, no_shared_fs=True)
    busy: Reply = {"ok": False, "message": "run other-1 is still running"}
    answers = {"vacant": STARTED, "put": STARTED, "stop": STOPPED}
    hosts = FakeHosts(monkeypatch, node0=answers, node1={"vacant": busy})
    reported = failing_start(plan, summary="the job was not started:")
    assert reported == [("node1", "run other-1 is still running")]
    assert hosts.verbs("node1") == ["vacant"]
    # The stop removes the secrets.
    assert hosts.verbs("node0") == ["vacant", *["put"] * 4, "stop"]


def test_an_unreachable_host_blocks_only_starts_that_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = make_plan(tmp_path, 1, 1, run_id="earlier")
    RunDir(tmp_path).write_launch(earlier, {}, "", {})
    FakeHosts(monkeypatch, node0={"status": {"processes": 0}, "start": STARTED}, node1={"status": LOST})
    with pytest.raises(FlagScaleError, match=r"cannot tell whether a job .* \(node1: no answer from"):
        launcher.refuse_if_running(RunDir(tmp_path), make_plan(tmp_path, 1, 1))
    alone = make_plan(tmp_path, 1)
    assert [host.name for host in alone.hosts] == ["localhost"]
    launcher.refuse_if_running(RunDir(tmp_path), alone)


def recorded(plan: LaunchPlan, *phases: Phase) -> None:
    """Write the states that the hosts of a plan would write."""
    for host, phase in zip(plan.hosts, phases, strict=True):
        HostState(plan.run_id, phase).write(RunDir(Path(plan.exp_dir)).state(host))


def asked_for_status(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch, first: Phase = "running"
) -> list[str]:
    """Ask for the status while the first host is in this phase; return the hosts that were asked."""
    replies = {host.name: first if host.rank == 0 else "running" for host in plan.hosts}
    hosts = FakeHosts(
        monkeypatch,
        **{
            name: {"status": {"run_id": plan.run_id, "phase": reported, "processes": 3}}
            for name, reported in replies.items()
        },
    )
    found = launcher.status(plan)
    assert [host.state.phase for host in found if host.state] == list(replies.values())
    assert [host.processes for host in found] == [None if len(hosts.asked) == 1 else 3] * len(found)
    return sorted({name for name, _ in hosts.asked})


def test_only_the_first_host_is_asked_while_all_are_running(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(plan, "running", "running", "running")
    assert asked_for_status(plan, monkeypatch) == ["node0"]


@pytest.mark.parametrize("phases", [("running", "starting", "running"), ("running", "running", "failed")])
def test_all_hosts_are_asked_if_not_all_are_running(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch, phases: tuple[Phase, ...]
) -> None:
    recorded(plan, *phases)
    assert asked_for_status(plan, monkeypatch) == ["node0", "node1", "node2"]


def test_all_hosts_are_asked_if_the_first_supervisor_has_ended(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(plan, "running", "running", "running")
    assert asked_for_status(plan, monkeypatch, "failed") == ["node0", "node1", "node2"]


def test_all_hosts_are_asked_if_they_do_not_share_the_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tmp_path / "run", 1, 1, no_shared_fs=True)
    recorded(plan, "running", "running")
    assert asked_for_status(plan, monkeypatch) == ["node0", "node1"]


def test_all_hosts_are_asked_if_one_was_left_out(plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been cut off while running, so that its recorded state stays `running`."""
    recorded(plan, "running", "running", "running")
    state: Reply = {"run_id": plan.run_id, "phase": "running", "processes": 3}
    first = {**state, "members": [0, 1]}
    hosts = FakeHosts(monkeypatch, node0={"status": first}, node1={"status": state}, node2={"status": LOST})
    assert [host.trouble for host in launcher.status(plan)] == ["", "", LOST["message"]]
    assert hosts.verbs("node2") == ["status"]


def test_any_number_of_hosts_may_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(tmp_path / "run", *[1] * 300)
    together = threading.Barrier(300)

    def begin(words: list[str]) -> Reply:
        together.wait(30)
        return dict(STARTED)

    FakeHosts(monkeypatch, **{host.name: {"start": begin} for host in plan.hosts})
    launcher.start(plan, "", {})


def test_fewer_threads_than_hosts_delay_a_stop_and_prevent_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scarce(threading.Thread):
        left = 2

        def start(self) -> None:
            if not Scarce.left:
                raise RuntimeError("can't start new thread")
            Scarce.left -= 1
            super().start()

    monkeypatch.setattr("flagscale.remote.hosts.Thread", Scarce)
    assert at_once(str, range(5)) == ["0", "1", "2", "3", "4"]
    Scarce.left = 2
    with pytest.raises(FlagScaleError, match=r"allows 2 more threads .*ulimit -u"):
        at_once(str, range(5), together=True)


def test_states_of_another_run_are_ignored(plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(replace(plan, run_id="earlier"), "running", "running", "running")
    assert asked_for_status(plan, monkeypatch) == ["node0", "node1", "node2"]
