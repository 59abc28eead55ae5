"""An evaluation as a user runs it: `run.py ... action=run`, with a tiny model and tasks of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from flagscale.run.checkpoints import TRACKER
from flagscale.run.env import import_path
from flagscale_testing.ranks.training import PATIENCE, ROOT

pytestmark = pytest.mark.skipif(
    not find_spec("lm_eval"), reason="lm_eval is not installed: flagscale[evaluate]"
)

CONFIG = """\
experiment:
  exp_name: scores
  exp_dir: {folder}/run
  task: {{type: evaluate, backend: lm_eval}}
  runner: {{platform: cpu}}
  envs: {{HF_HOME: {folder}/cache}}
action: run
evaluate:
  model: hf
  model_args: {{dtype: float32}}
  checkpoints: [{folder}/one, {folder}/two]
  tasks: [local_choice, local_answer]
  include_path: {folder}/tasks
  batch_size: 4
"""


@pytest.fixture
def flagscale(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that performs an action on an evaluation of two models."""
    from flagscale_testing.evaluated import write_model, write_tasks

    for seed, name in enumerate(("one", "two")):
        write_model(tmp_path / name, seed)
    write_tasks(tmp_path / "tasks")
    (tmp_path / "scores.yaml").write_text(CONFIG.format(folder=tmp_path))
    # Packages that a test environment has in PYTHONPATH.
    env = {**os.environ, "PYTHONPATH": import_path(str(ROOT), os.environ.get("PYTHONPATH", ""))}

    def flagscale(action: str, *words: str) -> subprocess.CompletedProcess[str]:
        where = ("--config-path", str(tmp_path), "--config-name", "scores")
        return subprocess.run(
            [sys.executable, str(ROOT / "run.py"), *where, f"action={action}", *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            cwd=tmp_path,
            env=env,
        )

    return flagscale


def test_a_model_gets_the_scores_that_are_computed_apart(
    flagscale: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    from flagscale_testing.evaluated import accuracies, reference

    done = flagscale("test", f"evaluate.checkpoints=[{tmp_path}/one]", "evaluate.tasks=[local_choice]")
    assert done.returncode == 0, done.stdout + done.stderr
    scores = json.loads((tmp_path / "run/evaluation/results.json").read_text())
    expected = accuracies(reference(tmp_path / "one").choices(bos=True))
    assert {one["metric"]: one["value"] for one in scores} == dict(
        zip(("acc", "acc_norm"), expected, strict=True)
    )
    assert 0 < expected[0] < 1, "a score that every mistake would give shows nothing"


@pytest.mark.slow
def test_two_models_are_evaluated(
    flagscale: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = flagscale("test")
    assert done.returncode == 0, done.stdout + done.stderr
    state = json.loads(flagscale("query", "+output=json").stdout)
    assert state["state"] == "finished"
    results = tmp_path / "run" / "evaluation"
    scores = json.loads((results / "results.json").read_text())
    assert {(one["model"], one["task"], one["metric"]) for one in scores} == {
        (model, task, metric)
        for model in ("one", "two")
        for task, metric in (
            ("local_choice", "acc"),
            ("local_choice", "acc_norm"),
            ("local_answer", "exact_match"),
        )
    }
    assert (results / "results.svg").is_file()
    table = (results / "results.txt").read_text()
    assert table.splitlines()[-1] in flagscale("logs").stdout


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_used_is_named(
    flagscale: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / TRACKER).write_text("10")
    done = flagscale("test", f"evaluate.checkpoints=[{tmp_path}/empty]")
    assert done.returncode != 0
    assert f"{tmp_path}/empty: no checkpoint found" in flagscale("query").stdout


@pytest.mark.slow
def test_an_evaluation_is_stopped(flagscale: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    assert flagscale("run").returncode == 0
    assert flagscale("stop").returncode == 0
    assert json.loads(flagscale("query", "+output=json").stdout)["state"] == "stopped"
