"""Figures to MLflow: with a stand-in for its client, and to a server that does not answer."""

from __future__ import annotations

import json
import sys
import threading
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from flagscale_testing.ports import free_port
from flagscale_testing.ranks.training import wait_for
from megatron.flagscale.metrics import tracking
from megatron.flagscale.metrics.mlflow_entry import Target, begin
from megatron.flagscale.metrics.tracking import Tracking, figures


@dataclass
class Store:
    """What the stand-in's server holds; `fails` is how many requests it refuses yet."""

    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    experiments: dict[str, str] = field(default_factory=dict)
    fails: int = 0


class Client:
    """The methods of MLflow's client that are used; a test with the real one checks that they exist."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get_experiment_by_name(self, name: str) -> object:
        found = self._store.experiments.get(name)
        return types.SimpleNamespace(experiment_id=found) if found else None

    def create_experiment(self, name: str) -> str:
        return self._store.experiments.setdefault(name, f"of {name}")

    def create_run(self, experiment_id: str, run_name: str) -> object:
        run = f"run {len(self._store.runs)}"
        self._store.runs[run] = {"name": run_name, "of": experiment_id, "metrics": [], "params": {}}
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run))

    def update_run(self, run_id: str, status: str) -> None:
        self._store.runs[run_id]["status"] = status

    def set_terminated(self, run_id: str, status: str) -> None:
        self.update_run(run_id, status)

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        if self._store.fails:
            self._store.fails -= 1
            raise ConnectionError("refused")
        assert len(metrics) <= 1000
        assert len(params) <= 100
        self._store.runs[run_id]["metrics"] += metrics
        self._store.runs[run_id]["params"] |= dict(params)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    held = Store()
    entities = types.ModuleType("mlflow.entities")
    entities.Metric = lambda key, value, timestamp, step: (step, key, value)  # type: ignore[attr-defined]
    entities.Param = lambda key, value: (key, value)  # type: ignore[attr-defined]
    package = types.ModuleType("mlflow")
    package.MlflowClient = lambda tracking_uri: Client(held)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setattr(tracking, "_EVERY", 0.01)
    monkeypatch.setattr(tracking, "_AFTER_FAILURE", 0.01)
    return held


def record(iteration: int) -> dict[str, Any]:
    return {"iteration": iteration, "lm_loss": 5.0 / iteration, "grad_norm": None, "time": 1e9 + iteration}


def test_a_run_that_resumes_continues_the_run_of_mlflow(store: Store, tmp_path: Path) -> None:
    target = Target("http://here", "all", "demo", tmp_path / "run.json")
    for start in (1, 3):
        sending = Tracking(target, {f"key{number}": number for number in range(250)})
        for iteration in (start, start + 1):
            sending.add(record(iteration))
        sending.finish()
    ((run_id, run),) = store.runs.items()
    assert run["metrics"] == [(step, "lm_loss", 5.0 / step) for step in (1, 2, 3, 4)]
    assert (run["name"], run["of"], run["status"]) == ("demo", "of all", "FINISHED")
    assert len(run["params"]) == 250
    assert json.loads((tmp_path / "run.json").read_text())["run_id"] == run_id
    there = Target("http://there", "all", "demo", tmp_path / "run.json")
    assert begin(Client(store), there) == ("run 1", True)  # another server has not got that run
    assert begin(Client(store), there) == ("run 1", False)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run_id": 3}', '{"x": 1}'])
def test_a_file_that_holds_no_run_is_replaced(store: Store, tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    here = Target("http://here", "all", "demo", tmp_path / "run.json")
    assert begin(Client(store), here) == ("run 0", True)
    assert begin(Client(store), here) == ("run 0", False)


def test_a_run_whose_parameters_could_not_be_sent_is_not_begun_twice(store: Store) -> None:
    store.fails = 1
    sending = Tracking(Target("http://here", "all", None, None), {"lr": 0.1})
    wait_for(lambda: not store.fails)
    sending.finish()
    (run,) = store.runs.values()
    assert run["params"] == {"lr": "0.1"}


def test_a_training_that_ends_early_is_marked_as_killed(store: Store) -> None:
    Tracking(Target("http://here", "all", None, None), {}, lambda: False).finish()
    (run,) = store.runs.values()
    assert run["status"] == "KILLED"


def test_what_could_not_be_sent_is_sent_later(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    sending = Tracking(Target("http://here", "all", None, None), {})
    sending.add(record(1))
    wait_for(lambda: store.runs)
    store.fails = 2
    for iteration in (2, 3):
        sending.add(record(iteration))
    wait_for(lambda: not store.fails)
    sending.finish()
    (run,) = store.runs.values()
    assert [step for step, *_ in run["metrics"]] == [1, 2, 3]
    printed = capsys.readouterr().out
    assert printed.count("MLflow at http://here: ConnectionError: refused; the training continues") == 1


def test_the_training_does_not_wait_for_the_server(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, may_answer, log_batch = threading.Event(), threading.Event(), Client.log_batch

    def answered_late(client: Client, *positional: Any, **named: Any) -> None:
        asked.set()
        may_answer.wait()
        log_batch(client, *positional, **named)

    monkeypatch.setattr(Client, "log_batch", answered_late)
    sending = Tracking(Target("http://here", "all", None, None), {})
    sending.add(record(1))
    wait_for(asked.is_set)
    sending.add(record(2))
    may_answer.set()
    sending.finish()
    (run,) = store.runs.values()
    assert [step for step, *_ in run["metrics"]] == [1, 2]


def test_figures_beyond_the_limit_are_counted(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "_MOST_WAITING", 3)
    store.fails = 10**9
    sending = Tracking(Target("http://here", "all", None, None), {})
    for iteration in range(1, 6):
        sending.add(record(iteration))
    sending.finish()
    assert "MLflow lacks 5 of the lines in metrics.jsonl" in capsys.readouterr().out


def test_figures_are_the_numbers_of_a_record_by_their_names() -> None:
    line = {"iteration": 3, "train_iters": 9, "time": 1.0, "validation_loss/web": 2, "x": None, "y": True}
    assert list(figures({**line, "loss_scale": float("inf")})) == [("validation_loss/web", 2.0)]


def test_the_real_client_reports_a_server_that_does_not_answer_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setattr(tracking, "_EVERY", 0.01)
    monkeypatch.setattr(tracking, "_AFTER_FAILURE", 0.01)
    sending = Tracking(Target(f"http://127.0.0.1:{free_port()}", "all", None, None), {})
    sending.add(record(1))
    sending.finish()
    assert capsys.readouterr().out.count("; the training continues, and metrics.jsonl has all figures") == 1
