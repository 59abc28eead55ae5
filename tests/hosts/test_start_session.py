"""A start over SSH, in which the session becomes the supervisor: what is left of it, and what can end it."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from flagscale.remote import launcher
from flagscale.run.env import run_tags
from flagscale_testing.farm.farm import is_sshd, wait_until
from flagscale_testing.farm.loopback import LoopbackFarm
from tests.hosts.conftest import FarmJob, MakeJob, command_line, run_of
from tests.hosts.test_start import assert_nothing_is_left, blamed, error_of

STOPPED = "the job did not start: it was stopped by another command meanwhile"


def sessions(farm: LoopbackFarm) -> list[psutil.Process]:
    """Return the processes of SSH sessions on all hosts: sshd's, and the shell and `cat` of a start."""
    found = []
    for process in farm.keeper.processes():
        try:
            is_session = is_sshd(process) and "[listener]" not in command_line(process)
        except psutil.NoSuchProcess:
            continue
        if is_session or command_line(process).startswith(("sh -c exec 3<&0", "cat")):
            found.append(process)
    return found


def open_files(process: psutil.Process) -> dict[int, str]:
    folder = Path(f"/proc/{process.pid}/fd")
    found = {}
    for entry in folder.iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found[int(entry.name)] = os.readlink(entry)
    return found


def ignored(process: psutil.Process) -> int:
    """Return the mask of the signals that a process ignores."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("SigIgn:"))


def _is_waiting_for_lock(process: psutil.Process) -> bool:
    return any(link.endswith(".lock") for link in open_files(process).values())


def wait_for_session(job: FarmJob, rank: int) -> psutil.Process:
    """Return the session of a start on a host, when it waits for that host's lock."""
    found: list[psutil.Process] = []

    def waits() -> bool:
        found[:] = [
            process
            for process in job.left(job.hosts[rank])
            if "flagscale.node supervise -" in command_line(process) and _is_waiting_for_lock(process)
        ]
        return bool(found)

    wait_until(waits, "a session that waits for the lock")
    return found[0]


def test_the_supervisor_keeps_nothing_of_the_session(farm: LoopbackFarm, make_job: MakeJob) -> None:
    (farm.home / ".bashrc").write_text("echo noise; echo noise >&2; printf 'no end of line'\n")
    try:
        job = make_job(farm, "rank").start()
    finally:
        (farm.home / ".bashrc").unlink()
    wait_until(lambda: not sessions(farm), "the end of all sessions")
    for rank, host in enumerate(job.hosts):
        job.agent_report(rank)  # written when its rank runs, which a start does not wait for
        supervisor, guard, engine = (job.member(rank, name) for name in ("supervisor", "guard", "engine"))
        assert f"supervise - {rank} {job.plan.run_id}" in command_line(supervisor)
        assert len(job.left(host)) == 4, "supervisor, guard, agent and rank"
        assert os.getsid(supervisor.pid) == supervisor.pid
        files = open_files(supervisor)
        log = str(job.files.output(job.plan.hosts[rank]))
        assert (files[0], files[1], files[2]) == ("/dev/null", log, log)
        # What is left are the pipe to the guard, and sockets of the channel.
        assert sum(target.startswith("pipe:") for target in files.values()) == 1
        assert ignored(engine) & (1 << signal.SIGINT - 1 | 1 << signal.SIGQUIT - 1) == 0
        assert {*open_files(guard).values()} == {*files.values()} & {*open_files(guard).values()} | {
            open_files(guard)[0]
        }
        assert run_tags(job.plan.run_id, rank).items() <= supervisor.environ().items()
        assert job.log(rank).splitlines()[0].startswith(f"=== run {job.plan.run_id} on ")
        assert "noise" not in job.log(rank)


def test_the_engine_finds_the_same_as_behind_a_script(farm: LoopbackFarm, make_job: MakeJob) -> None:
    found = []
    for lines in ("", "true"):
        job = make_job(farm, "rank", hosts=1, channel=None, before_start=lines).start()
        environment = job.agent_report(0)["environ"]
        found.append(({name: environment[name] for name in ("PWD", "PYTHONPATH", "HOME", "PATH")},
                      job.member(0, "engine").cwd(), job.member(0, "supervisor").cwd()))  # fmt: skip
        job.stop()
    assert found[0] == found[1]


def test_a_supervisor_without_state_and_plan_is_found_counted_and_stopped(
    farm: LoopbackFarm, make_job: MakeJob
) -> None:
    job = make_job(farm, "rank", hosts=1, channel=None).start()
    (host,) = job.hosts
    job.agent_report(0)
    for path in (job.files.path / "logs/pids").iterdir():
        path.unlink()
    (status,) = launcher.status(job.plan)
    assert (status.state, status.processes) == (None, len(job.left(host)))
    job.files.plan.unlink()
    (status,) = launcher.status(job.plan)
    assert status.processes == len(job.left(host)) == 4
    assert [reply["ended"] for reply in job.stop().values()] == [True]
    assert_nothing_is_left(job)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_session_that_is_killed_fails_the_start(
    farm: LoopbackFarm, make_job: MakeJob, number: signal.Signals
) -> None:
    job = make_job(farm, "rank")
    with ThreadPoolExecutor() as pool:
        with job.files.on_host(job.plan.hosts[1]):
            starting = pool.submit(error_of, job.start)
            wait_for_session(job, 1).send_signal(number)
        error = starting.result()
    assert blamed(error) == [job.hosts[1].address]
    assert "the connection was lost (it ended)" in error
    assert_nothing_is_left(job)
    assert job.phases() == ["stopped", "failed", "stopped"]
    make_job(farm, "rank").start()


def test_a_supervisor_that_is_killed_in_the_rendezvous_fails_the_start(
    farm: LoopbackFarm, make_job: MakeJob
) -> None:
    job = make_job(farm, "rank")
    with ThreadPoolExecutor() as pool:
        with job.files.on_host(job.plan.hosts[1]):
            starting = pool.submit(error_of, job.start)
            wait_for_session(job, 1)
            wait_until(lambda: job.members(2, "guard"), "a supervisor with its guard")
            job.member(2, "supervisor").kill()
            wait_until(lambda: not job.left(job.hosts[2]), "the end of what it left")
        error = starting.result()
    assert blamed(error) == [job.hosts[2].address]
    assert_nothing_is_left(job)


def test_a_stop_during_the_start_is_named(farm: LoopbackFarm, make_job: MakeJob) -> None:
    """The stop finds the session by its tags and ends it, or comes first and is found by the session."""
    job = make_job(farm, "rank")
    with ThreadPoolExecutor() as pool:
        with job.files.on_host(job.plan.hosts[1]):
            starting = pool.submit(error_of, job.start)
            wait_for_session(job, 1)
            stopping = pool.submit(job.stop)
            wait_until(lambda: job.phases()[0] == "stopped", "the stop of the first host")
        assert {reply["ok"] for reply in stopping.result().values()} == {True}
        assert starting.result() == STOPPED
    assert_nothing_is_left(job)


def test_ctrl_c_while_sessions_wait_rolls_the_start_back(farm: LoopbackFarm, make_job: MakeJob) -> None:
    job = make_job(farm, "rank")
    with job.files.on_host(job.plan.hosts[1]):
        launching = job.launch()
        wait_for_session(job, 1)
        launching.send_signal(signal.SIGINT)
        wait_until(lambda: job.phases()[0] == "stopped", "the stop of the first host")
    _, error = launching.communicate(timeout=30)
    assert "KeyboardInterrupt" in error
    assert_nothing_is_left(job)
    assert job.phases() == ["stopped"] * 3


def test_a_bug_in_the_supervisor_is_reported_with_its_traceback(
    farm: LoopbackFarm, make_job: MakeJob
) -> None:
    job = make_job(farm, "rank", hosts=1, channel=None)
    (host,) = job.plan.hosts
    with ThreadPoolExecutor() as pool:
        with job.files.on_host(host):
            starting = pool.submit(error_of, lambda: job.start({"API_KEY": "geheim"}))
            wait_for_session(job, 0)
            job.files.secrets(host).write_text("not JSON")
        error = starting.result()
    assert "JSONDecodeError: Expecting value" in error
    assert_nothing_is_left(job)
    assert job.phases() == ["failed"]


def test_a_missing_folder_fails_the_start(farm: LoopbackFarm, make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(farm, "rank", hosts=1, channel=None)
    (node,) = job.plan.nodes
    away = replace(job, plan=replace(job.plan, nodes=(replace(node, cwd=str(tmp_path / "nowhere")),)))
    assert (
        f"the job cannot be started: [Errno 2] No such file or directory: '{tmp_path}/nowhere'"
        in error_of(away.start)
    )
    assert_nothing_is_left(away)
    assert away.phases() == ["failed"]


def test_a_start_without_openssh(
    farm: LoopbackFarm, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flagscale.remote.openssh.client.program", lambda: None)
    job = make_job(farm, "rank").start()
    wait_until(lambda: not sessions(farm), "the end of all sessions")
    assert "supervise - 0" in command_line(job.member(0, "supervisor"))
    assert {reply["message"] for reply in job.stop().values()} == {"stopped"}
    assert_nothing_is_left(job)


def test_no_process_of_the_run_is_a_stranger(farm: LoopbackFarm, make_job: MakeJob) -> None:
    """The shell and `cat` around a session are no processes of the run: no stop ends or counts them."""
    job = make_job(farm, "rank")
    with ThreadPoolExecutor() as pool:
        with job.files.on_host(job.plan.hosts[1]):
            starting = pool.submit(error_of, job.start)
            session = wait_for_session(job, 1)
            assert job.left(job.hosts[1]) == [session]
            around = [process for process in sessions(farm) if not is_sshd(process)]
            assert around
            assert {run_of(process) for process in around} == {None}
        assert starting.result() == ""
