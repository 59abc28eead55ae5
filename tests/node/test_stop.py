"""A stop ends every process of its run and no other process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from flagscale.errors import FlagScaleError
from flagscale.node import commands, stop
from flagscale.node.processes import alive, end, of_run
from flagscale.remote import launcher
from flagscale.run.env import run_tags
from flagscale.run.state import HostState, ProcessId
from flagscale.values import Machine
from tests.node.conftest import FakeJob, wait_for

MakeJob = Callable[..., FakeJob]
HARD = ("rank", "rank deaf", "rank daemon", "rank stopped", "rank bare", "rank daemon bare deaf")


def test_a_stop_ends_the_whole_run_and_nothing_else(make_job: MakeJob, decoys: list[psutil.Process]) -> None:
    job = make_job(*HARD).start()
    everything = job.everything()
    assert len(everything) == len(HARD) + 3
    assert job.status().processes == len(everything)
    began = time.monotonic()
    assert job.stop() == {"ok": True, "ended": True, "message": "stopped"}
    # The grace period, then two seconds for what is left after the agent.
    assert time.monotonic() - began < job.plan.nodes[0].stop_grace + 15
    assert not [process for process in everything if alive(process)]
    state = job.state()
    assert (state.phase, state.failure) == ("stopped", None)
    assert state.ended is not None
    assert job.stop() == {"ok": True, "ended": False, "message": "nothing was running"}
    assert job.state() == state


def test_secrets_are_deleted_after_the_processes_that_may_still_read_them(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that finds no secrets fails, and the start would report that instead of the cause."""
    job = make_job("rank").start()
    job.files.secrets(job.host).write_text("{}")
    there: list[bool] = []

    def end(*given: Any) -> list[psutil.Process]:
        there.append(job.files.secrets(job.host).exists())
        return original(*given)

    original = stop._end
    monkeypatch.setattr(stop, "_end", end)
    assert job.stop()["ok"]
    assert there == [True]
    assert not job.files.secrets(job.host).exists()


def test_a_stop_ends_a_run_without_its_plan(make_job: MakeJob, decoys: list[psutil.Process]) -> None:
    """The file system may be away, or the run directory may have been emptied."""
    job = make_job("rank", "rank bare").start()
    everything = job.everything()
    job.files.plan.unlink()
    status = job.status()
    assert (status.processes, status.ended) == (len(everything), False)
    reply = job.stop()
    assert reply["ok"]
    assert reply["message"].startswith("stopped, but experiment.cmds.after_stop was not run: run plan not")
    assert not [process for process in everything if alive(process)]
    assert job.stop() == {"ok": True, "ended": False, "message": "nothing was started there"}
    assert job.status().processes == 0


def test_a_run_of_another_machine_is_left_alone(make_job: MakeJob) -> None:
    """Its run directory is visible here as well, and `localhost` in its plan is not this machine."""
    job = make_job("rank")
    plan = replace(job.plan, started_on=Machine("another", "its boot"))
    job.files.write_launch(plan, {}, "", {})
    ours = ProcessId.of(os.getpid())
    theirs = replace(ours, birth=f"its boot:{ours.birth.partition(':')[2]}")
    HostState(plan.run_id, "running", theirs).write(job.files.state(job.host))
    before = job.state()
    reply = commands.execute(["stop", plan.exp_dir, "0", plan.run_id])
    assert reply == {
        "ok": False,
        "message": f"run {plan.run_id} was started on another; run this command there",
    }
    assert job.state() == before
    # A query from here looks for it there, but no host has that name here.
    (host,) = launcher.status(plan)
    assert str(host.trouble).startswith("cannot resolve the host name another")
    with pytest.raises(FlagScaleError, match=r"cannot tell whether a job .* or remove .*plan\.json if"):
        launcher.refuse_if_running(job.files, job.plan)
    (node,) = job.plan.nodes
    others = replace(job.plan, nodes=(replace(node, host=replace(node.host, name="10.9.9.9")),))
    with pytest.raises(
        FlagScaleError, match="cannot tell whether"
    ):  # it has no other hosts whose loss would end it
        launcher.refuse_if_running(job.files, others)
    # A run that ended there can be continued here, as in clusters that give every job another machine.
    before.changed(phase="finished").write(job.files.state(job.host))
    (host,) = launcher.status(plan)
    assert (host.trouble, host.state and host.state.phase) == ("", "finished")
    launcher.refuse_if_running(job.files, job.plan)


def test_simultaneous_stops_end_the_run_once(make_job: MakeJob) -> None:
    job = make_job("rank", after_stop="echo x >> after").start()
    with ThreadPoolExecutor() as pool:
        replies = list(pool.map(lambda _: job.stop(), range(3)))
    assert all(reply["ok"] for reply in replies)
    assert sorted(reply["ended"] for reply in replies) == [False, False, True]
    assert (job.files.path / "after").read_text() == "x\n"


def test_after_stop_runs_even_if_another_host_ended_the_run_first(make_job: MakeJob) -> None:
    job = make_job("rank", after_stop="echo x >> after").start()
    job.member("supervisor").terminate()
    wait_for(lambda: job.state().phase == "stopped" and job.is_gone())
    assert job.stop()["ended"]
    assert not job.stop()["ended"]
    assert (job.files.path / "after").read_text() == "x\n"


def test_after_stop_runs_even_if_the_run_ends_during_the_stop(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop has then read a state that says "running", but no process is alive."""
    job = make_job("rank", after_stop="echo x >> after").start()
    supervisor = job.member("supervisor")

    def late(*which: Any) -> set[psutil.Process]:
        if alive(supervisor):
            supervisor.send_signal(signal.SIGTERM)
            wait_for(job.is_gone)
        return of_run(*which)

    monkeypatch.setattr(stop.processes, "of_run", late)
    assert job.stop() == {"ok": True, "ended": True, "message": "stopped"}
    assert (job.files.path / "after").read_text() == "x\n"


def test_a_process_that_is_briefly_hidden_is_ended(decoys: list[psutil.Process]) -> None:
    """For example, a process that is just executing another program."""
    program = psutil.Popen(["sleep", "1000"])
    looks = iter([set(), {program}])
    assert end(lambda: next(looks, set()), 5.0) == []
    assert program.wait(0) == -signal.SIGTERM


def test_a_failing_after_stop_is_reported(make_job: MakeJob) -> None:
    job = make_job("rank", after_stop="echo cannot tidy >&2; exit 3").start()
    reply = job.stop()
    assert not reply["ok"]
    assert reply["message"] == "stopped, but experiment.cmds.after_stop ended with exit code 3: cannot tidy"
    assert job.state().phase == "stopped"
    # Nothing was running any more, so there is nothing to clean up.
    assert job.stop()["ok"]


def test_a_suspended_supervisor_and_a_suspended_agent_are_ended(make_job: MakeJob) -> None:
    job = make_job("rank").start()
    everything = job.everything()
    job.member("engine").suspend()
    job.member("supervisor").suspend()
    assert job.stop()["ok"]
    assert not [process for process in everything if alive(process)]
    assert job.state().phase == "stopped"


@pytest.mark.parametrize(
    "victims", [("supervisor",), ("guard",), ("supervisor", "guard"), ("supervisor", "guard", "engine")]
)
def test_a_stop_works_after_a_member_was_killed(
    make_job: MakeJob, decoys: list[psutil.Process], victims: tuple[str, ...]
) -> None:
    job = make_job("rank", "rank deaf", "rank daemon").start()
    everything = job.everything()
    killed = [job.member(victim) for victim in victims]
    for process in killed:
        process.kill()
    wait_for(lambda: not any(alive(process) for process in killed))
    assert job.stop()["ok"]
    assert not [process for process in everything if alive(process)]
    assert job.state().phase == ("stopped" if victims == ("guard",) else "failed")
    make_job("rank").start()


def test_a_suspended_lock_holder_does_not_block_a_stop(make_job: MakeJob) -> None:
    """A process that was suspended while it held the lock of the host's state must not delay a stop."""
    job = make_job("rank").start()
    program = (
        "import os, signal; from pathlib import Path; from flagscale.files import locked\n"
        f"with locked(Path({str(job.files.logs / 'pids' / f'{job.host.label}.lock')!r})):\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, **run_tags(job.plan.run_id, job.host.rank)}
    )
    wait_for(lambda: psutil.Process(holder.pid).status() == psutil.STATUS_STOPPED)
    with ThreadPoolExecutor() as pool:
        try:
            assert pool.submit(job.stop).result(timeout=20)["ok"]
        finally:
            holder.kill()
            holder.wait()


def test_a_stop_works_without_a_readable_state(make_job: MakeJob) -> None:
    job = make_job("rank", "rank deaf").start()
    everything = job.everything()
    job.files.state(job.host).write_text('{"run_id": ')
    assert "cannot be read" in job.status().trouble
    with pytest.raises(FlagScaleError, match="a job is still running"):
        make_job().start()
    assert job.stop()["ok"]
    assert not [process for process in everything if alive(process)]
    assert job.state().phase == "stopped"


@pytest.fixture
def bystander() -> Iterator[psutil.Process]:
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", "import time; time.sleep(100)"], start_new_session=True
    )
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


@pytest.mark.parametrize("stale", ["pid reused", "host restarted"])
def test_a_stale_state_is_recognised(make_job: MakeJob, bystander: psutil.Process, stale: str) -> None:
    """The recorded pids now belong to other processes."""
    job = make_job("rank")
    job.files.write_launch(job.plan, {}, "", {})
    boot, _, ticks = ProcessId.of(bystander.pid).birth.partition(":")
    birth = f"{boot}:{int(ticks) - 100}" if stale == "pid reused" else f"another-boot:{ticks}"
    other = ProcessId(bystander.pid, birth)
    HostState(job.plan.run_id, "running", other, other, other).write(job.files.state(job.host))
    status = job.status()
    assert status.state is not None
    assert (status.state.phase, status.processes) == ("failed", 0)
    assert status.state.failure is not None
    restarted = stale == "host restarted"
    assert ("the host was restarted" in status.state.failure.message) == restarted
    assert job.stop() == {"ok": True, "ended": False, "message": "nothing was running"}
    assert alive(bystander)
    assert job.state().phase == "failed"
    make_job("rank").start()
    assert alive(bystander)


def test_the_other_hosts_are_stopped_if_one_cannot_start(make_job: MakeJob, tmp_path: Path) -> None:
    """Both hosts are this machine: the second cannot start, so the first is stopped again."""
    job = make_job("rank")
    (node,) = job.plan.nodes
    second = replace(
        node, host=replace(node.host, rank=1), env=run_tags(job.plan.run_id, 1), argv=("/no/such/engine",)
    )
    plan = replace(job.plan, nodes=(node, second), world_size=2)
    with pytest.raises(FlagScaleError) as failure:
        launcher.start(plan, "", {})
    assert "hosts that had started were stopped again" in str(failure.value)
    assert "cannot be started" in str(failure.value)
    assert not of_run(plan.run_id)
    phases = [status.state and status.state.phase for status in launcher.status(plan)]
    assert phases[1] == "failed"
