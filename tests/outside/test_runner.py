"""A batch system from outside: `run` submits, `query` reports queued, running, finished; `stop` cancels."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.outside.conftest import Installed

EXPERIMENT = """
experiment:
  exp_name: toy
  exp_dir: {folder}/out
  task: {{type: inference, backend: toy}}
  runner:
    type: toy_queue
    platform: cpu
    options: {{label: Ada}}
  envs: {{TOY_TOKEN: top-secret}}
action: dryrun
inference: {{until: {folder}/end}}
"""


@dataclass(frozen=True)
class Queue:
    """An experiment for the queue, and the queue itself."""

    installed: Installed
    folder: Path

    def command(self, action: str, *more: str, code: int = 0) -> str:
        """Run an action, check its exit code, and return everything that it prints."""
        words = ["--config-path", str(self.folder / "conf"), "--config-name", "config", f"action={action}"]
        done = self.installed.flagscale(*words, *more)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def status(self) -> dict[str, Any]:
        done: dict[str, Any] = json.loads(self.command("query", "output=json"))
        return done

    @property
    def tickets(self) -> list[str]:
        return sorted(path.suffix for path in (self.folder / "queue").glob("toy-*"))

    def printed(self) -> str:
        return "".join(path.read_text() for path in self.folder.glob("out/logs/host_0_*.output"))

    def wait_for(self, what: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not what():
            assert time.monotonic() < deadline, self.command("query", code=1)
            time.sleep(0.05)


@pytest.fixture
def queue(
    install: Callable[..., Installed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Queue]:
    """A queue that is busy with another job."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text(EXPERIMENT.format(folder=tmp_path))
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / "busy").touch()
    monkeypatch.setenv("TOY_QUEUE", str(tmp_path / "queue"))
    yield Queue(install("runner"), tmp_path)
    # A job that the test has left behind ends now.
    (tmp_path / "end").touch()
    (tmp_path / "queue" / "busy").unlink(missing_ok=True)


def test_a_job_is_queued_then_runs_then_finishes(queue: Queue) -> None:
    assert f"submitted to the queue in {queue.folder}/queue" in queue.command("run")
    assert "toy: queued" in (status := queue.command("query"))
    assert "  the queue is busy, Ada is waiting\n  host 0  localhost  queued" in status
    assert "is queued (the queue is busy, Ada is waiting); stop it first" in queue.command("run", code=1)
    assert queue.printed() == ""
    (queue.folder / "queue" / "busy").unlink()
    queue.wait_for(lambda: "the toy job runs" in queue.printed())
    assert queue.tickets == [".started"]
    assert queue.status()["state"] == "running"
    (queue.folder / "end").touch()
    queue.wait_for(lambda: queue.status()["state"] == "finished")
    assert "the toy job found its file" in queue.command("logs")
    assert [
        path for path in queue.folder.rglob("*") if path.is_file() and "top-secret" in path.read_text()
    ] == [queue.folder / "conf" / "config.yaml"]


def test_a_queued_job_is_cancelled(queue: Queue) -> None:
    queue.command("run")
    # The mistakes elsewhere in the configuration do not prevent it.
    assert "host 0  localhost  cancelled" in queue.command("stop", "inference=3", "experiment.task.x=1")
    assert queue.tickets == [".cancelled"]
    (queue.folder / "queue" / "busy").unlink()
    assert queue.status()["state"] == "stopped"
    assert queue.printed() == ""
    assert not [*queue.folder.rglob("*.secrets.json")]


def test_a_running_job_is_stopped(queue: Queue) -> None:
    (queue.folder / "queue" / "busy").unlink()
    queue.command("run")
    queue.wait_for(lambda: "the toy job runs" in queue.printed())
    assert "host 0  localhost  stopped" in queue.command("stop")
    assert queue.status()["state"] == "stopped"
    assert "found its file" not in queue.printed()


def test_dryrun_prints_the_plan_and_submits_nothing(queue: Queue) -> None:
    printed = queue.command("dryrun")
    assert f"# {queue.folder}/out/logs/scripts/queue.sh\n" in printed
    assert 'while [ -e "$TOY_QUEUE/busy" ]' in printed
    assert "host_0_localhost_run.sh" in printed
    assert not (queue.folder / "out").exists()
    assert queue.tickets == []


def test_the_checks_of_the_queue_are_performed(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"ok      queue  $TOY_QUEUE is the folder {queue.folder}/queue" in queue.command("check")
    monkeypatch.setenv("TOY_QUEUE", "/absent")
    assert "no queue in /absent" in queue.command("run", code=1)
    assert not (queue.folder / "out").exists()


def test_mistakes_are_reported_with_their_line(queue: Queue) -> None:
    config = queue.folder / "conf" / "config.yaml"
    config.write_text(
        config.read_text()
        .replace("    platform", "    hostfile: hosts\n    platform")
        .replace("label", "lable")
    )
    shown = queue.command("dryrun", code=2)
    assert "config.yaml:8: experiment.runner.hostfile: `hostfile` has no effect with type: toy_queue" in shown
    assert "the queue runs jobs on its own host" in shown
    assert "config.yaml:10: experiment.runner.options.lable: unknown key `lable`" in shown
    assert "did you mean `label`?" in shown
    config.write_text(config.read_text().replace("toy_queue", "toy_quue"))
    shown = queue.command("dryrun", code=2)
    assert "config.yaml:7: experiment.runner.type: unknown runner `toy_quue`" in shown
    assert "did you mean `toy_queue`?" in shown
