"""A stop of several hosts: the first one ends the others; whatever it cannot answer for is asked itself."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from flagscale.errors import HostError
from flagscale.remote import launcher
from flagscale.remote.ssh import SshTransport
from flagscale.remote.transport import transport
from flagscale.run.state import Reply, read_state
from flagscale.values import Recovery
from flagscale_testing.farm.farm import alive, wait_until
from flagscale_testing.farm.loopback import LoopbackFarm
from tests.hosts.conftest import FarmJob, MakeJob, left

HARD = ("rank", "rank deaf", "rank daemon", "rank stopped", "rank bare", "rank daemon bare deaf")
STOPPED = {"ok": True, "ended": True, "message": "stopped"}
NOTHING = {"ok": True, "ended": False, "message": "nothing was running"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The number of stops that each host is asked for over SSH."""
    counted: Counter[str] = Counter()
    call = SshTransport.call

    def counting(way: SshTransport, words: list[str], seconds: float) -> Reply:
        if words[0] == "stop":
            counted[way._access.host] += 1
        return call(way, words, seconds)

    monkeypatch.setattr(SshTransport, "call", counting)
    return counted


def assert_nothing_is_left(job: FarmJob) -> None:
    assert [process for host in job.hosts for process in left(job.farm, host)] == []
    assert not list(job.files.path.rglob("*.secrets.json"))


def names(job: FarmJob) -> list[str]:
    return [host.name for host in job.plan.hosts]


def test_one_session_ends_all_hosts_and_nothing_else(
    farm: LoopbackFarm, make_job: MakeJob, asked: Counter[str], decoys: list[psutil.Process]
) -> None:
    job = make_job(farm, *HARD).start({"API_KEY": "geheim"})
    everything = {psutil.Process(pid) for rank in range(3) for pid in job.agent_report(rank)["pids"].values()}
    assert len(everything) == 3 * len(HARD)
    everything.update(process for host in job.hosts for process in job.left(host))
    job.files.secrets(job.plan.hosts[1]).write_text("{}")
    assert job.stop() == dict.fromkeys(range(3), STOPPED)
    assert not [process for process in everything if alive(process)]
    assert all(alive(decoy) for decoy in decoys)
    assert asked == {names(job)[0]: 1}
    assert not list(job.files.path.rglob("*.secrets.json"))
    states = [(state.phase, state.is_tidied) for state in job.states() if state]
    assert states == [("stopped", True)] * 3
    # Repeated, it looks on every host.
    asked.clear()
    assert job.stop() == dict.fromkeys(range(3), NOTHING)
    assert asked == dict.fromkeys(names(job), 1)
    # The next start relies on the first stop: no host has to be asked whether it is free.
    farm.stop_sshd(*farm.hosts)
    transport.cache_clear()
    launcher.refuse_if_running(job.files, job.plan)


def test_a_host_that_ssh_does_not_reach_is_stopped_through_the_channel(
    farm: LoopbackFarm, make_job: MakeJob
) -> None:
    job = make_job(farm, "rank", "rank deaf").start()
    farm.stop_sshd(farm.hosts[2])
    stop = job.command("stop")
    assert (stop.returncode, stop.stdout.count("stopped")) == (0, 3)
    assert_nothing_is_left(job)


def test_the_others_are_stopped_if_the_first_host_is_not_reached(
    farm: LoopbackFarm, make_job: MakeJob
) -> None:
    job = make_job(farm, "rank").start()
    transport.cache_clear()  # drops the sessions of the start
    farm.stop_sshd(farm.hosts[0])
    replies = job.stop()
    assert replies[0]["message"].endswith("Connection refused")
    assert [replies[rank] for rank in (1, 2)] == [STOPPED] * 2
    job.wait_until_clean()
    farm.start_sshd(farm.hosts[0])
    assert all(reply["ok"] for reply in job.stop().values())


def test_after_stop_runs_on_every_host(farm: LoopbackFarm, make_job: MakeJob, asked: Counter[str]) -> None:
    job = make_job(farm, "rank", after_stop='echo x >> "after $FARM_HOST"').start()
    assert job.stop() == dict.fromkeys(range(3), STOPPED)
    assert_nothing_is_left(job)
    assert asked == dict.fromkeys(names(job), 1)
    assert {path.read_text() for path in job.files.path.glob("after *")} == {"x\n"}
    assert len(list(job.files.path.glob("after *"))) == 3
    assert job.stop() == dict.fromkeys(range(3), NOTHING)


@pytest.mark.slow
def test_a_host_whose_supervisor_is_suspended_is_asked_itself(
    farm: LoopbackFarm, make_job: MakeJob, asked: Counter[str]
) -> None:
    job = make_job(farm, "rank", "rank daemon deaf").start()
    job.member(2, "supervisor").suspend()
    assert job.stop() == dict.fromkeys(range(3), STOPPED)
    assert_nothing_is_left(job)
    assert asked == {names(job)[0]: 1, names(job)[2]: 1}


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_supervisor_that_is_killed_while_it_stops(
    farm: LoopbackFarm, make_job: MakeJob, victim: int
) -> None:
    job = make_job(farm, "rank deaf", "rank daemon bare deaf", stop_grace=3.0).start()
    supervisor = job.member(victim, "supervisor")
    with ThreadPoolExecutor() as pool:
        stopping = pool.submit(job.stop)
        wait_until(lambda: _recorded_phase(job, victim) == "stopping", "the stop")
        supervisor.kill()
        replies = stopping.result()
    assert all(reply["ok"] for reply in replies.values()), replies
    assert_nothing_is_left(job)


def test_two_stops_at_once(farm: LoopbackFarm, make_job: MakeJob) -> None:
    job = make_job(farm, "rank deaf").start()
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda _: job.stop(), range(2)))
    assert all(reply["ok"] for replies in both for reply in replies.values()), both
    assert {replies[0]["ended"] for replies in both} == {True, False}
    assert_nothing_is_left(job)
    assert job.stop() == dict.fromkeys(range(3), NOTHING)


@pytest.mark.parametrize(
    "moment", ["the first host stops", pytest.param("all hosts have stopped", marks=pytest.mark.slow)]
)
def test_a_stop_that_is_killed_and_repeated(farm: LoopbackFarm, make_job: MakeJob, moment: str) -> None:
    """It goes on without its command, and the next one verifies that nothing is left."""
    job = make_job(farm, "rank", "rank daemon bare deaf").start()
    stopping = job.launch_stop()
    phases = {"stopping", "stopped"} if moment == "the first host stops" else {"stopped"}
    ranks = range(1 if moment == "the first host stops" else 3)
    wait_until(lambda: all(_recorded_phase(job, rank) in phases for rank in ranks), moment)
    stopping.kill()
    stopping.wait()
    assert all(reply["ok"] for reply in job.stop().values())
    assert_nothing_is_left(job)
    assert job.phases() == ["stopped"] * 3
    assert job.stop() == dict.fromkeys(range(3), NOTHING)


@pytest.mark.slow
def test_a_stop_while_the_hosts_end_a_hanging_attempt(farm: LoopbackFarm, make_job: MakeJob) -> None:
    job = make_job(farm, "rank", "rank deaf", recovery=Recovery(max_restarts=5, hang_timeout=2)).start()
    for host in job.plan.hosts:
        job.files.heartbeat(host).touch()
    wait_until(lambda: "stacks of the rank" in job.log(0) + job.log(1) + job.log(2), "the hang")
    assert job.stop() == dict.fromkeys(range(3), STOPPED)
    assert_nothing_is_left(job)
    assert job.phases() == ["stopped"] * 3


def _recorded_phase(job: FarmJob, rank: int) -> str:
    state = read_state(job.files.state(job.plan.hosts[rank]), job.plan.run_id)
    return state.phase if state else ""


def test_a_failed_start_needs_no_session_on_hosts_that_answer_that_they_have_stopped(
    farm: LoopbackFarm, make_job: MakeJob, asked: Counter[str], tmp_path: Path
) -> None:
    job = make_job(farm, "rank")
    first, second, third = job.plan.nodes
    nodes = (first, second, replace(third, cwd=str(tmp_path / "nowhere")))
    job = replace(job, plan=replace(job.plan, nodes=nodes))
    with ThreadPoolExecutor() as pool:
        with job.files.on_host(job.plan.hosts[2]):
            starting = pool.submit(job.start, {"API_KEY": "geheim"})
            wait_until(lambda: _is_connected(job, 1), "a connection to the first host's supervisor")
        with pytest.raises(HostError, match="nowhere"):
            starting.result()
    assert_nothing_is_left(job)
    assert asked == {names(job)[0]: 1, names(job)[2]: 1}
    assert job.phases() == ["stopped", "stopped", "failed"]


def _is_connected(job: FarmJob, rank: int) -> bool:
    """Return whether a supervisor has joined the channel."""
    return any(
        connection.status == psutil.CONN_ESTABLISHED
        for supervisor in job.members(rank, "supervisor")
        for connection in supervisor.net_connections()
    )
