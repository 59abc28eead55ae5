"""A start is confirmed, exclusive and complete: either everything runs or nothing is left."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from os import statvfs
from pathlib import Path

import psutil
import pytest

from flagscale import files
from flagscale.errors import FlagScaleError, HostError
from flagscale.node import commands
from flagscale.node.processes import of_run
from flagscale.plan.render import scripts
from flagscale.remote import launcher
from flagscale.run.env import RUN_ID, import_path
from flagscale.run.state import HostState
from flagscale.values import PLAN_VERSION
from flagscale_testing.disk import small_file_system
from tests.node.conftest import FakeJob, wait_for

MakeJob = Callable[..., FakeJob]


def test_a_start_is_confirmed_and_recorded(make_job: MakeJob) -> None:
    job = make_job("rank").start()
    assert job.agent_report()["argv"][-1] == "rank"
    state = job.state()
    assert (state.phase, state.run_id, state.failure, state.ended) == ("running", job.plan.run_id, None, None)
    assert len({job.member(name).pid for name in ("supervisor", "guard", "engine")}) == 3
    assert abs(state.started - time.time()) < 20
    assert job.log().startswith(f"=== run {job.plan.run_id} on localhost, ")
    status = job.status()
    assert status.state == state
    assert status.processes == 4
    assert launcher.status(job.plan, count=False)[0].processes is None

    with pytest.raises(FlagScaleError, match=r"a job is still running in .* with 4 processes.*stop it first"):
        make_job().start()
    assert job.files.read_plan() == job.plan
    assert job.stop()["ok"]

    # A run that is just ending does not prevent the next start.
    for _ in range(2):
        job = make_job("exit:0").start()
        wait_for(lambda job=job: job.state().phase == "finished")


def test_only_one_of_two_simultaneous_launchers_starts(make_job: MakeJob) -> None:
    jobs = [make_job("rank"), make_job("rank")]
    with ThreadPoolExecutor() as pool:
        errors = list(pool.map(lambda job: _error_of(job.start), jobs))
    (error,) = filter(None, errors)
    assert "another command is starting a job" in error or "a job is still running" in error
    assert jobs[0].files.read_plan() == next(
        job.plan for job, failed in zip(jobs, errors, strict=True) if not failed
    )


def _error_of(action: Callable[[], object]) -> str:
    try:
        action()
    except FlagScaleError as error:
        return str(error)
    return ""


def test_a_failing_before_start_fails_the_start_and_shows_its_output(make_job: MakeJob) -> None:
    job = make_job("rank", before_start="echo no such module >&2\nsleep 60 &\nfalse\necho not reached")
    with pytest.raises(HostError) as failure:
        job.start({"API_KEY": "geheim"})
    text = "experiment.cmds.before_start ended with exit code 1: no such module"
    assert text in str(failure.value)
    assert "not reached" not in str(failure.value)
    assert not of_run(job.plan.run_id)
    assert not job.files.secrets(job.host).exists()
    status = job.status()
    assert status.state is not None
    assert (status.state.phase, status.processes) == ("failed", 0)
    assert status.state.failure is not None
    assert status.state.failure.message == text
    # The next start is not blocked.
    make_job("rank").start()


def test_a_missing_engine_fails_the_start(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(argv=("/no/such/engine", "--x"))
    with pytest.raises(HostError, match=r"the engine cannot be started: .*No such file.*/no/such/engine"):
        job.start()
    assert not of_run(job.plan.run_id)
    assert job.state().phase == "failed"
    with pytest.raises(HostError, match=r"the start script ended with exit code 1: .*cd: .*/nowhere"):
        make_job(cwd=str(tmp_path / "nowhere")).start()
    with pytest.raises(HostError, match="the engine cannot be started: embedded null byte"):
        make_job(env={"NAME": "nul\0"}).start()
    with pytest.raises(HostError, match=r"the start script ended with exit code 12[67]: .*/no/python"):
        make_job(python="/no/python").start()


def test_a_start_that_takes_too_long_is_ended(make_job: MakeJob) -> None:
    job = make_job(before_start="sleep 60 || true", start_timeout=0.3)
    with pytest.raises(HostError, match=r"did not start within 0\.3 s; see .*localhost\.output"):
        job.start()
    assert not of_run(job.plan.run_id)
    assert job.state().phase == "failed"


def test_ctrl_c_during_the_start_rolls_it_back(make_job: MakeJob) -> None:
    job = make_job(before_start="sleep 60 || sleep 60")
    launching = job.launch()
    wait_for(lambda: len(of_run(job.plan.run_id)) >= 2)
    began = time.monotonic()
    launching.send_signal(signal.SIGINT)
    _, error = launching.communicate(timeout=20)
    assert time.monotonic() - began < 5
    assert "KeyboardInterrupt" in error
    assert not of_run(job.plan.run_id)
    assert job.state().phase == "stopped"
    make_job("rank").start()


def test_a_start_whose_launcher_was_killed_can_be_stopped(make_job: MakeJob) -> None:
    job = make_job("rank", before_start="sleep 60 || sleep 60")
    launching = job.launch()
    wait_for(lambda: job.files.state(job.host).exists() and len(of_run(job.plan.run_id)) >= 2)
    launching.kill()
    launching.communicate()
    status = job.status()
    assert status.state is not None
    assert status.state.phase == "starting"
    assert status.processes >= 2
    with pytest.raises(FlagScaleError, match="a job is still running"):
        make_job("rank").start()
    assert job.stop() == {"ok": True, "ended": True, "message": "stopped"}
    assert not of_run(job.plan.run_id)
    assert job.state().phase == "stopped"
    make_job("rank").start()


def test_a_start_that_arrives_after_its_stop_starts_nothing(make_job: MakeJob) -> None:
    """Ctrl-C may stop a host before the thread that starts it has begun."""
    job = make_job("rank")
    job.files.write_launch(job.plan, {job.files.run_script(job.host): "exec sleep 60\n"}, "", {})
    assert job.stop()["message"] == "nothing was running"
    words = ["start", job.plan.exp_dir, "0", job.plan.run_id]
    assert commands.execute(words) == {"ok": False, "message": "stopped before it started", "stopped": True}
    assert not of_run(job.plan.run_id)


HOSTILE = 'a b\'c"d $HOME $(touch x) `touch x`; touch x & #{}\\ \n ünï-中文 --x={"k": [1, "v"]}'


def test_values_and_paths_travel_verbatim(make_job: MakeJob, tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE.replace("/", "_")
    job = make_job(
        "no rank", HOSTILE, "--option", HOSTILE, "", exp_dir=folder, env={"VALUE": HOSTILE}, name=HOSTILE
    )
    job.start({"SECRET_KEY": HOSTILE})
    reported = job.agent_report()
    assert reported["argv"][1:] == [str(job.report), "no rank", HOSTILE, "--option", HOSTILE, ""]
    assert reported["environ"]["VALUE"] == reported["environ"]["SECRET_KEY"] == HOSTILE
    assert reported["environ"][RUN_ID] == job.plan.run_id
    assert reported["cwd"] == str(folder)
    assert job.stop()["ok"]
    assert not list(tmp_path.rglob("x"))
    for script in (job.files.run_script(job.host), job.files.stop_script(job.host)):
        assert subprocess.run(["bash", "-n", str(script)], capture_output=True).stderr == b""


def test_the_stop_script_works_by_hand(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job("rank", exp_dir=tmp_path / "it's here").start()
    done = subprocess.run(["bash", str(job.files.stop_script(job.host))], capture_output=True, text=True)
    assert (done.returncode, json.loads(done.stdout)["message"]) == (0, "stopped")
    assert job.state().phase == "stopped"


def test_before_start_prepares_the_environment_of_the_engine(make_job: MakeJob) -> None:
    job = make_job(before_start="export PREPARED=yes PYTHONPATH=/elsewhere; cd /").start()
    reported = job.agent_report()
    assert reported["environ"]["PREPARED"] == "yes"
    root = job.plan.source_root
    assert reported["environ"]["PYTHONPATH"] == import_path(root, "/elsewhere")
    assert reported["cwd"] == job.plan.exp_dir


def test_what_wins_among_shell_before_start_and_the_experiment(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_SHELL", "shell")
    monkeypatch.setenv("IN_ALL", "shell")
    lines = "echo before_start sees $OF_SHELL, $IN_ALL and [$OF_ENVS]\n"
    lines += "export EXPORTED=$OF_SHELL:more IN_ALL=export"
    job = make_job(before_start=lines, env={"IN_ALL": "envs", "OF_ENVS": "envs"}).start()
    environ = job.agent_report()["environ"]
    assert "before_start sees shell, shell and []" in job.log()
    assert environ["EXPORTED"] == "shell:more"
    assert (environ["OF_SHELL"], environ["OF_ENVS"], environ["IN_ALL"]) == ("shell", "envs", "envs")


def test_secrets_are_stored_only_for_the_engine(make_job: MakeJob) -> None:
    job = make_job("rank", before_start=f"stat -c 'mode %a' {'logs/pids/*.secrets.json'}").start(
        {"API_KEY": "geheim"}
    )
    assert job.agent_report()["environ"]["API_KEY"] == "geheim"
    assert "mode 600" in job.log()
    job.report.unlink()
    assert not [path for path in job.files.path.rglob("*") if path.is_file() and "geheim" in path.read_text()]
    assert not job.files.secrets(job.host).exists()
    for process in of_run(job.plan.run_id):
        assert "geheim" not in " ".join(process.cmdline())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    with small_file_system(tmp_path / "disk", "64k") as folder:
        yield folder


def test_a_full_disk_fails_the_start_with_one_message(make_job: MakeJob, small_disk: Path) -> None:
    job = make_job("rank", exp_dir=small_disk / "run")
    ballast = small_disk / "ballast"
    for free in (0, 5 * 4096):
        ballast.unlink(missing_ok=True)
        ballast.write_bytes(bytes(statvfs(small_disk).f_bavail * 4096 - free))
        with pytest.raises(FlagScaleError, match="No space left on device"):
            job.start({"API_KEY": "geheim"})
        assert not of_run(job.plan.run_id)
        assert not job.files.secrets(job.host).exists()
    ballast.unlink()
    make_job("rank", exp_dir=small_disk / "run").start().stop()


@pytest.mark.parametrize("broken", range(6))
def test_nothing_is_left_if_a_file_cannot_be_written(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    """The n-th write of a start fails: config, two scripts, plan, secrets; the sixth is the first state."""
    written = 0

    def full(handle: int) -> None:
        nonlocal written
        written += 1
        if written > broken:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    job = make_job("rank")
    with pytest.raises(FlagScaleError, match="No space left on device"):
        job.start({"API_KEY": "geheim"})
    monkeypatch.undo()
    assert not of_run(job.plan.run_id)
    assert not job.files.secrets(job.host).exists()
    assert not list(job.files.path.rglob(".writing*"))
    make_job("rank").start()


def test_a_start_ends_processes_that_it_cannot_record(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a state file, a stop may miss them."""
    job = make_job("rank")
    job.files.write_launch(job.plan, scripts(job.plan), "", {})

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(HostState, "write", full)
        reply = commands.execute(["start", job.plan.exp_dir, "0", job.plan.run_id])
    assert reply == {"ok": False, "message": "cannot start: No space left on device"}
    wait_for(job.is_gone)
    assert not job.files.state(job.host).exists()


def test_an_unwritable_run_directory_is_reported(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    job = make_job("rank")
    job = FakeJob(replace(job.plan, exp_dir=str(tmp_path / "file")))
    with pytest.raises(FlagScaleError, match=r"cannot write to the run directory .*/file: "):
        job.start()
    (tmp_path / "logs").touch()
    with pytest.raises(FlagScaleError, match=r"cannot write to the run directory .*: "):
        make_job("rank").start({"API_KEY": "geheim"})


def test_an_unreadable_plan_is_reported(make_job: MakeJob) -> None:
    job = make_job("rank")
    version = f'"version": {PLAN_VERSION}'
    for text in ("", "{", "[]", f"{{{version}}}", f'{{{version}, "nodes": [3]}}', "\udcff"):
        job.files.plan.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(FlagScaleError, match=r"plan\.json cannot be read .*remove the file"):
            job.start()
    assert commands.execute(["stop", job.plan.exp_dir, "0", job.plan.run_id])["ok"] is False


def test_a_plan_may_appear_late(make_job: MakeJob) -> None:
    """This happens on a network file system whose directory has just been listed."""
    job = make_job("rank")
    job.files.write_launch(job.plan, scripts(job.plan), "", {})
    away = job.files.plan.rename(job.files.path / "away")
    late = threading.Timer(0.3, lambda: away.rename(job.files.plan))
    late.start()
    assert commands.execute(["start", job.plan.exp_dir, "0", job.plan.run_id]) == {
        "ok": True,
        "message": "running",
    }
    late.join()
    assert job.stop()["ok"]


def test_the_starting_process_leaves_no_zombie(make_job: MakeJob) -> None:
    # Other tests may leave some, such as multiprocessing's resource tracker.
    before = set(psutil.Process().children())
    make_job("exit:0").start()
    wait_for(lambda: set(psutil.Process().children()) <= before)


def test_an_engine_that_ends_at_once_is_reported_with_its_output(make_job: MakeJob) -> None:
    """The start succeeded; the status reports the end, with the output of the agent."""
    job = make_job("exit:2")
    # It depends on milliseconds whether the start already sees the end.
    reported = _error_of(job.start)
    assert not reported or "the agent ended with exit code 2\nthe last words of the agent" in reported
    wait_for(lambda: job.state().phase == "failed")
    failure = job.state().failure
    assert failure is not None
    assert (failure.message, failure.exitcode) == ("the agent ended with exit code 2", 2)
    assert failure.traceback == "the last words of the agent\n"
    wait_for(job.is_gone)


def test_the_run_script_works_by_hand(make_job: MakeJob) -> None:
    """The plan's scripts are also for people: they run in the foreground until the engine ends."""
    job = make_job("rank").start()
    assert job.stop()["ok"]
    shell = subprocess.Popen(["bash", str(job.files.run_script(job.host))], stdout=subprocess.DEVNULL)
    wait_for(lambda: job.state().phase == "running")
    assert job.stop()["message"] == "stopped"
    assert shell.wait(5) == 0


def test_the_script_uses_the_interpreter_of_the_plan(make_job: MakeJob) -> None:
    assert f"exec {sys.executable} -m flagscale.node supervise" in _script(make_job("exit:0").start())


def _script(job: FakeJob) -> str:
    return job.files.run_script(job.host).read_text()
