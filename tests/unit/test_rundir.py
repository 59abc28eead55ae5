"""The run directory, which owns every path."""

from __future__ import annotations

import json
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from flagscale import files as files_module
from flagscale.errors import FlagScaleError
from flagscale.files import write_atomic
from flagscale.run import rundir
from flagscale.run.rundir import RunDir
from flagscale.values import PLAN_VERSION, Host
from tests.unit.plans import make_plan


def test_paths_of_a_run() -> None:
    files, host = RunDir(Path("/r")), Host(3, "node3", 8, "chip")
    assert [str(path) for path in (files.config, files.plan, files.metrics, files.checkpoints)] == [
        "/r/config.yaml", "/r/plan.json", "/r/metrics.jsonl", "/r/checkpoints",
    ]  # fmt: skip
    assert [str(path) for path in (files.run_script(host), files.stop_script(host))] == [
        "/r/logs/scripts/host_3_node3_run.sh",
        "/r/logs/scripts/host_3_node3_stop.sh",
    ]
    assert str(files.output(host)) == "/r/logs/host_3_node3.output"
    assert str(files.details(host)) == "/r/logs/details/host_3_node3"
    assert {path.parent for path in (files.state(host), files.failure(host), files.secrets(host))} == {
        Path("/r/logs/pids")
    }


def test_a_launch_is_recorded_and_read_back(tmp_path: Path) -> None:
    files, plan = RunDir(tmp_path / "not yet there"), make_plan(tmp_path / "not yet there")
    assert files.read_plan() is None
    script = files.run_script(plan.nodes[0].host)
    files.write_launch(plan, {script: "text"}, "a: 1\n", {plan.hosts[0]: {"API_KEY": "geheim"}})
    assert files.read_plan() == plan
    assert (files.config.read_text(), script.read_text()) == ("a: 1\n", "text")
    assert script.stat().st_mode & stat.S_IXUSR
    assert stat.S_IMODE(files.secrets(plan.nodes[0].host).stat().st_mode) == 0o600


@pytest.mark.parametrize("written", range(5))
def test_secrets_are_never_written_without_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """A stop needs the plan to find secrets, even if the launcher was killed: here after the n-th file."""
    files, plan = RunDir(tmp_path), make_plan(tmp_path)
    count = 0

    def kill(path: Path, text: str, mode: int = 0o644) -> None:
        nonlocal count
        if count == written:
            raise KeyboardInterrupt
        count += 1
        write_atomic(path, text, mode)

    for module in (rundir, files_module):
        monkeypatch.setattr(module, "write_atomic", kill)
    with suppress(KeyboardInterrupt):
        secrets = {plan.hosts[0]: {"API_KEY": "geheim"}}
        files.write_launch(plan, {files.run_script(plan.hosts[0]): ""}, "", secrets)
    assert count == min(written, 4)
    assert files.read_plan() == plan or not files.secrets(plan.hosts[0]).exists()


def test_there_is_no_plan_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert RunDir(tmp_path / "file").read_plan() is None


def test_an_unreadable_plan_is_reported(tmp_path: Path) -> None:
    files = RunDir(tmp_path)
    files.plan.mkdir()
    with pytest.raises(FlagScaleError, match=r"plan\.json cannot be read \(Is a directory\)"):
        files.read_plan()


@pytest.mark.parametrize("version", [PLAN_VERSION - 1, PLAN_VERSION + 1])
def test_the_error_for_a_plan_of_another_version_says_how_to_end_the_run(
    tmp_path: Path, version: int
) -> None:
    files, plan = RunDir(tmp_path), make_plan(tmp_path)
    # Its fields may have other names as well.
    files.plan.write_text(json.dumps({"version": version, "id": plan.run_id}))
    with pytest.raises(FlagScaleError) as raised:
        files.read_plan()
    assert str(raised.value) == (
        f"{files.plan}: the run was started by another version of FlagScale (plan version {version}, "
        f"this one reads {PLAN_VERSION}); use that version to query or stop it, or remove the file if "
        "none of its processes are running"
    )


def test_only_one_launcher_holds_the_run_directory(tmp_path: Path) -> None:
    files = RunDir(tmp_path / "new")
    with (
        files.starting(),
        pytest.raises(FlagScaleError, match="another command is starting a job"),
        files.starting(),
    ):
        pass
    with pytest.raises(BlockingIOError), files.starting():
        raise BlockingIOError  # an error raised inside has nothing to do with the lock
    with files.starting():
        pass
