"""How a run of MLflow is marked when its ranks cannot do it: by torchrun, with a stand-in for the client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from flagscale.errors import RollBackError
from flagscale_testing.packages import write_package
from flagscale_testing.ranks.training import (
    PATIENCE,
    ROOT,
    ended_at_last,
    environment,
    torchrun,
    wait_for,
)

STAND_IN = """
import pathlib
class MlflowClient:
    def __init__(self, tracking_uri):
        self.file = pathlib.Path(tracking_uri)
    def set_terminated(self, run_id, status):
        if not self.file.parent.exists():
            raise ConnectionError("refused")
        with self.file.open("a") as file:
            file.write(f"{run_id} {status}\\\\n")
""".replace("\\\\", "\\")
RANK = """
import json, os, pathlib, signal, socket, sys, time
ending, file, uri, agent = sys.argv[1], pathlib.Path(sys.argv[3]), sys.argv[4], sys.argv[5]
if os.environ["RANK"] == "1":
    run = {"tracking_uri": uri, "experiment_id": "0", "run_id": "r", "host": socket.gethostname()}
    file.write_text(json.dumps(run | {"agent": int(agent) or os.getppid()}))
    time.sleep(600)
while not file.exists():
    time.sleep(0.02)
if ending.isdigit():
    os._exit(int(ending))
time.sleep(600)
"""


def start(folder: Path, ending: str, uri: Path, agent: int = 0) -> subprocess.Popen[bytes]:
    """Start two ranks, of which the last begins a run, and the first ends with a code or waits."""
    (folder / "site").mkdir()
    write_package(folder / "site", "mlflow", {}, STAND_IN)
    (folder / "rank.py").write_text(RANK)
    file = str(folder / "mlflow_run.json")
    own = (str(folder / "rank.py"), ending, "--mlflow-run-file", file, str(uri), str(agent))
    env = environment()
    env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], str(folder / "site")])
    with (folder / "output").open("w") as output:
        return subprocess.Popen(
            torchrun(2, "--monitor-interval", "0.1", *own), stdout=output, stderr=output, cwd=ROOT, env=env
        )


def marks(folder: Path) -> list[str]:
    file = folder / "marks"
    return file.read_text().splitlines() if file.exists() else []


def test_a_run_is_marked_as_failed_if_another_rank_fails(tmp_path: Path) -> None:
    with ended_at_last(start(tmp_path, "1", tmp_path / "marks")) as process:
        assert process.wait(PATIENCE) == 1
    assert marks(tmp_path) == ["r FAILED"]


@pytest.mark.slow
def test_a_run_is_marked_as_killed_if_the_job_is_stopped(tmp_path: Path) -> None:
    with ended_at_last(start(tmp_path, "wait", tmp_path / "marks")) as process:
        wait_for((tmp_path / "mlflow_run.json").exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
    assert marks(tmp_path) == ["r KILLED"]


@pytest.mark.slow
def test_a_run_continues_after_a_rollback(tmp_path: Path) -> None:
    with ended_at_last(start(tmp_path, str(RollBackError.exit_code), tmp_path / "marks")) as process:
        assert process.wait(PATIENCE) == 1
    assert marks(tmp_path) == []
    assert json.loads((tmp_path / "mlflow_run.json").read_text())["run_id"] == "r"


@pytest.mark.slow
def test_the_run_of_another_start_is_left_alone(tmp_path: Path) -> None:
    with ended_at_last(start(tmp_path, "1", tmp_path / "marks", agent=1)) as process:
        assert process.wait(PATIENCE) == 1
    assert marks(tmp_path) == []


@pytest.mark.slow
def test_a_server_that_refuses_does_not_change_how_the_job_ends(tmp_path: Path) -> None:
    with ended_at_last(start(tmp_path, "3", tmp_path / "missing" / "marks")) as process:
        assert process.wait(PATIENCE) == 1
    output = (tmp_path / "output").read_text()
    assert "is not marked as FAILED: ConnectionError: refused" in output
    assert "rank 0 (pid " in output
