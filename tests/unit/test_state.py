"""The state of a host and the processes named in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flagscale import linux
from flagscale import linux as lifetime
from flagscale.errors import FlagScaleError
from flagscale.node import commands
from flagscale.node.processes import group_of, living
from flagscale.run.failure import Failure
from flagscale.run.rundir import RunDir
from flagscale.run.state import Attempt, HostState, ProcessId, Reply, from_dict, read_state
from tests.unit.plans import make_plan

FULL = HostState(
    "run",
    "failed",
    supervisor=ProcessId(1, "boot:1"),
    guard=ProcessId(2, "boot:2"),
    engine=ProcessId(3, "boot:3"),
    started=1.0,
    ended=2.0,
    exit_code=-9,
    failure=Failure(
        "boom", rank=3, local_rank=1, pid=7, exitcode=-9, signal="SIGKILL", traceback="t", log="l", time=4.0
    ),
    attempts=(
        Attempt(0, 1.0, 1.25, Failure("ended because of node1", is_victim=True)),
        Attempt(1, 1.5, 1.75, Failure("no", rank=0, time=1.7)),
    ),
)


def test_a_state_without_attempts_can_be_read() -> None:
    assert from_dict({"run_id": "run", "phase": "running"}).attempts == ()


@pytest.mark.parametrize("state", [FULL, HostState("run", "starting")])
def test_a_state_is_read_back_as_written(tmp_path: Path, state: HostState) -> None:
    state.write(tmp_path / "state.json")
    assert read_state(tmp_path / "state.json", "run") == state
    assert read_state(tmp_path / "state.json", "another run") is None
    assert read_state(tmp_path / "none.json", "run") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "3",
        '{"run_id": "run", "phase": "x", "supervisor": 3}',
        '{"run_id": "run", "phase": "failed", "attempts": [3]}',
    ],
)
def test_a_damaged_state_is_reported(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(FlagScaleError, match=r"state\.json cannot be read"):
        read_state(tmp_path / "state.json", "run")


def test_unknown_fields_are_a_value_error() -> None:
    with pytest.raises(ValueError, match="not a host state"):
        from_dict({"run_id": "run", "phase": "running", "more": 1})


def test_a_process_is_identified_by_its_birth() -> None:
    own = ProcessId.of(os.getpid())
    assert living(own) == psutil.Process()
    assert own.is_of_this_boot
    boot, _, ticks = own.birth.partition(":")
    assert living(ProcessId(own.pid, f"{boot}:{int(ticks) + 1}")) is None
    assert living(ProcessId(own.pid, f"another:{ticks}")) is None
    assert not ProcessId(own.pid, f"another:{ticks}").is_of_this_boot


def test_an_ended_process_and_a_zombie_are_not_living() -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    known = ProcessId.of(child.pid)
    assert living(known) is not None
    assert group_of(HostState("run", "running", known)) == child.pid
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
    assert living(known) is None
    assert group_of(HostState("run", "running", known)) is None
    child.wait()
    assert living(known) is None
    with pytest.raises(ProcessLookupError):
        ProcessId.of(child.pid)


def test_functions_without_linux_support_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "_IS_LINUX", False)
    monkeypatch.setattr(lifetime, "_LIBC", None)
    own = ProcessId.of(os.getpid())
    assert own.birth.endswith(f":{psutil.Process().create_time():.2f}")
    assert living(own) is not None
    lifetime.die_with(os.getppid())
    lifetime.adopt_orphans()
    linux.reap_adopted(set())


@pytest.mark.parametrize("recorded", [None, "another-run"])
def test_commands_do_not_touch_another_run(tmp_path: Path, recorded: str | None) -> None:
    """A command for an unknown run must not query, and above all not stop, a later run in its directory."""
    if recorded:
        RunDir(tmp_path).write_launch(make_plan(tmp_path, run_id=recorded), {}, "", {})
    before = sorted(tmp_path.rglob("*"))
    words = [str(tmp_path), "0", "run"]
    assert commands.execute(["status", *words]) == {"processes": 0}
    assert commands.execute(["status", *words, "count"]) == {"processes": 0}
    stopped = commands.execute(["stop", *words])
    assert stopped == {"ok": True, "ended": False, "message": "nothing was started there"}
    for verb in ("start", "begin", "read"):
        reply = commands.execute([verb, *words])
        assert reply["ok"] is False
        assert f"does not see the plan of run run in {tmp_path}" in reply["message"]
    assert sorted(tmp_path.rglob("*")) == before


def test_commands_find_their_own_run(tmp_path: Path) -> None:
    RunDir(tmp_path).write_launch(make_plan(tmp_path, run_id="run"), {}, "", {})
    assert commands.execute(["status", str(tmp_path), "0", "run"]) == {"processes": 0}
    assert commands.execute(["begin", str(tmp_path), "0", "run"]) == {"position": None}
    assert commands.execute(["read", str(tmp_path), "0", "run", "output", "0", "9"]) == {
        "data": "",
        "size": 0,
    }


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "/file"), "cannot probe: /file: No space left on device"),
        (OSError(28, "No space left on device"), "cannot probe: No space left on device"),
        (psutil.AccessDenied(7), "cannot probe: (pid=7)"),
    ],
)
def test_an_expected_failure_is_a_reply(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fails() -> Reply:
        raise error

    monkeypatch.setitem(commands._OF_A_HOST, "probe", fails)  # type: ignore[index]
    assert commands.execute(["probe"]) == {"ok": False, "message": message}
