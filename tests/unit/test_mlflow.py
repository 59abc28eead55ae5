"""What the launcher gives a training that sends its figures to MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagscale.config.schema import Environment
from flagscale.engines.megatron.mlflow import login_of
from tests.unit.test_megatron_adapter import Build, value

URI = {"mlflow_tracking_uri": "http://host:5000"}
NAMES = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_the_experiment_and_the_run_have_the_name_of_the_job(build: Build, tmp_path: Path) -> None:
    job = build(URI)
    assert job.packages == ("mlflow-skinny",)
    assert value(job, "--mlflow-experiment") == value(job, "--mlflow-run-name") == job.name
    assert value(job, "--mlflow-run-file") == str(tmp_path / "run" / "mlflow_run.json")
    assert value(build({**URI, "mlflow_experiment": "all"}), "--mlflow-experiment") == "all"
    assert not any("mlflow" in word for word in build().role.argv)


def test_the_login_of_this_command_reaches_the_hosts_as_secrets(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NAMES[0], "me")
    monkeypatch.setenv(NAMES[1], "secret")
    job = build(URI)
    assert job.secrets == {NAMES[0]: "me", NAMES[1]: "secret"}
    assert not any("secret" in word for word in job.role.argv)
    assert build().secrets == {}
    assert login_of(Environment(MLFLOW_TRACKING_TOKEN="t")) == {}
    assert login_of(Environment(node_specific={"node1": {NAMES[0]: "other"}})) == {}
