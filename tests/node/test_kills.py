"""Any process of a run is killed: soon no process of the run is left, and the status says what happened."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flagscale.node.guard import GuardKeeper
from flagscale.node.processes import alive, living
from flagscale.run.state import HostState
from tests.node.conftest import FakeJob, wait_for

MakeJob = Callable[..., FakeJob]
RANKS = ("rank", "rank deaf", "rank daemon deaf", "rank bare")


def ended_state(job: FakeJob) -> HostState:
    state = job.status().state
    assert state is not None
    assert state.failure is not None or state.phase in ("running", "stopping", "finished")
    return state


@pytest.mark.parametrize("victim", ["engine", "supervisor"])
def test_any_killed_process_ends_the_whole_run(
    make_job: MakeJob, decoys: list[psutil.Process], victim: str
) -> None:
    job = make_job(*RANKS).start()
    everything = job.everything()
    job.member(victim).kill()
    began = time.monotonic()
    seen = []
    while not seen or seen[-1] != "failed":
        # Until then the status never reports a success, a stop, or an end that has not happened yet.
        seen.append(ended_state(job).phase)
        assert time.monotonic() - began < 10
        time.sleep(0.05)
    wait_for(job.is_gone)
    # A process that is ending no longer has an environment, but is still alive for a moment.
    wait_for(lambda: not any(alive(process) for process in everything))
    assert [phase for phase in seen if phase not in ("running", "stopping")] == ["failed"]
    failure = job.state().failure
    assert failure is not None
    if victim == "engine":
        assert (failure.message, failure.signal) == ("the agent was killed by SIGKILL", "SIGKILL")
    else:
        assert failure.message == "the supervisor was killed; its guard ended the processes of the run"
    assert job.state().exit_code not in (0, None)


def test_a_killed_guard_is_replaced(make_job: MakeJob) -> None:
    job = make_job("rank").start()
    first = job.member("guard")
    first.kill()
    second = wait_for(lambda: (guard := job.state().guard) and guard.pid != first.pid and living(guard))
    assert ended_state(job).phase == "running"
    # The next guard starts only after a pause.
    second.kill()
    time.sleep(0.5)
    guard = job.state().guard
    assert guard is not None
    assert guard.pid == second.pid
    # A stop also works without a guard.
    assert job.stop()["ok"]
    assert job.state().phase == "stopped"


def test_the_guard_does_not_hold_connections_of_its_supervisor(make_job: MakeJob) -> None:
    """The guard is a fork; if it held the connections, other hosts would not notice the supervisor's end."""
    job = make_job("rank")
    here, there = socket.socketpair()
    keeper = GuardKeeper(job.plan, job.plan.nodes[0])
    try:
        assert keeper.keep()
        here.close()
        there.settimeout(10)
        assert there.recv(1) == b""
    finally:
        keeper.end()


def test_the_guard_ignores_signals_that_ask_it_to_end(make_job: MakeJob) -> None:
    job = make_job("rank").start()
    guard = job.member("guard")
    time.sleep(0.5)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        guard.send_signal(number)
    for number in (signal.SIGINT, signal.SIGHUP):
        job.member("supervisor").send_signal(number)
    time.sleep(0.3)
    assert alive(guard)
    assert job.status().state == job.state()
    assert job.state().phase == "running"


def test_a_stop_ends_the_ranks_after_supervisor_and_guard_were_killed(make_job: MakeJob) -> None:
    """No process is left that would end the ranks: the status says so, and a stop ends them."""
    job = make_job("rank", "rank deaf").start()
    everything = job.everything()
    victims = [job.member(name) for name in ("guard", "supervisor")]
    for victim in victims:
        victim.kill()
    wait_for(lambda: not any(alive(victim) for victim in victims))
    status = job.status()
    assert status.state is not None
    assert status.state.phase == "failed"
    assert status.state.failure is not None
    assert "ended without a report" in status.state.failure.message
    # The kernel ends the agent with its supervisor; the ranks of the fake agent outlive it.
    wait_for(lambda: job.status().processes == 2)
    assert job.stop()["ok"]
    assert not [process for process in everything if alive(process)]
    assert job.state().phase == "failed"


def test_a_finished_run_leaves_no_daemons(make_job: MakeJob) -> None:
    job = make_job("rank", "rank daemon", "rank daemon bare").start()
    everything = job.everything()
    engine = job.member("engine")
    job.ranks()["rank"].kill()
    engine.send_signal(signal.SIGTERM)
    wait_for(lambda: job.state().phase == "finished")
    wait_for(job.is_gone)
    # A process that is ending no longer has an environment, but is still alive for a moment.
    wait_for(lambda: not any(alive(process) for process in everything))
    assert (job.state().exit_code, job.state().failure) == (0, None)


def test_the_agent_does_not_outlive_its_supervisor(make_job: MakeJob) -> None:
    """Even if the guard is late, because the kernel ends the agent."""
    job = make_job().start()
    engine = job.member("engine")
    job.member("guard").suspend()
    job.member("supervisor").kill()
    wait_for(lambda: not alive(engine))
    status = job.status()
    assert status.state is not None
    assert status.state.phase == "stopping"
    assert status.state.failure is not None


@pytest.mark.parametrize("name", ["supervisor", "guard"])
def test_what_ends_processes_is_in_memory_before_it_is_needed(make_job: MakeJob, name: str) -> None:
    """A start does without it; later, the file system that holds it may be gone."""
    job = make_job("rank").start()
    loaded = Path(f"/proc/{job.member(name).pid}/maps")
    wait_for(lambda: "_psutil_linux" in loaded.read_text())
