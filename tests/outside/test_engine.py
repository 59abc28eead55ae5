"""An engine from another package: its own task type and keys, and a real job on this host."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.outside.conftest import Installed

EXPERIMENT = """\
experiment:
  exp_name: exam
  exp_dir: {exp_dir}
  task: {{type: evaluate, backend: toy_evaluator}}
  runner: {{platform: cpu}}
action: run
evaluate:
  input:
    answers: {answers}
  metric: share
"""


@pytest.fixture
def evaluator(install: Callable[..., Installed], tmp_path: Path) -> Iterator[Callable[..., tuple[int, str]]]:
    """Return a function that runs FlagScale on an experiment for the engine: exit code and output."""
    installed = install("engine")
    answers = tmp_path / "answers.txt"
    answers.write_text("yes no yes yes\n")
    config = tmp_path / "exam.yaml"
    config.write_text(EXPERIMENT.format(exp_dir=tmp_path / "out", answers=answers))

    def flagscale(*words: str) -> tuple[int, str]:
        done = installed.flagscale("--config-path", str(tmp_path), "--config-name", "exam", *words)
        return done.returncode, done.stdout + done.stderr

    yield flagscale
    flagscale("action=stop")


def test_dryrun_prints_its_command(evaluator: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, printed = evaluator("action=dryrun")
    assert code == 0, printed
    assert "-m toy_evaluator.score" in printed
    assert f"--answers {tmp_path}/answers.txt" in printed


def test_wrong_keys_are_reported_with_the_nearest_name(evaluator: Callable[..., tuple[int, str]]) -> None:
    code, printed = evaluator("action=dryrun", "evaluate.metric=shar", "evaluate.metrik=count")
    assert code == 2
    assert "`metric` cannot be 'shar'; did you mean `share`?" in printed
    assert "toy_evaluator 1.2 has no argument `metrik`" in printed
    assert "did you mean `metric`?" in printed
    assert "command line: evaluate.metrik" in printed


def test_a_mistake_in_the_file_is_reported_with_its_line(
    evaluator: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    file = tmp_path / "exam.yaml"
    file.write_text(file.read_text().replace("metric:", "metrics:"))
    code, printed = evaluator("action=dryrun")
    assert code == 2
    assert "exam.yaml:10: evaluate.metrics" in printed
    assert "did you mean `metric`?" in printed


def test_an_unknown_task_type_of_the_engine_is_refused(evaluator: Callable[..., tuple[int, str]]) -> None:
    code, printed = evaluator("action=dryrun", "experiment.task.type=evaluat")
    assert code == 2
    assert "the engine `toy_evaluator` does not support `evaluat`" in printed
    assert "supported: evaluate" in printed


def test_the_task_type_is_refused_for_another_engine(evaluator: Callable[..., tuple[int, str]]) -> None:
    code, printed = evaluator("action=dryrun", "experiment.task.backend=megatron")
    assert code == 2
    assert "the engine `megatron` does not support `evaluate`" in printed


def test_a_job_runs_and_ends(evaluator: Callable[..., tuple[int, str]]) -> None:
    code, printed = evaluator("action=test")
    assert code == 0, printed
    code, printed = evaluator("action=query", "+output=json")
    assert code == 0
    assert json.loads(printed)["state"] == "finished"
    code, printed = evaluator("action=logs")
    assert "score: 0.75" in printed


def test_a_job_is_stopped(evaluator: Callable[..., tuple[int, str]]) -> None:
    code, printed = evaluator("action=run", "evaluate.pause=100")
    assert code == 0, printed
    _, printed = evaluator("action=query", "+output=json")
    assert json.loads(printed)["state"] in ("starting", "running")
    code, printed = evaluator("action=stop")
    assert code == 0, printed
    _, printed = evaluator("action=query", "+output=json")
    assert json.loads(printed)["state"] == "stopped"


def test_no_other_engine_is_imported(install: Callable[..., Installed], tmp_path: Path) -> None:
    (tmp_path / "answers.txt").write_text("yes\n")
    text = EXPERIMENT.format(exp_dir=tmp_path / "out", answers=tmp_path / "answers.txt")
    (tmp_path / "exam.yaml").write_text(text)
    code = (
        "import sys; from flagscale.cli import main; code = main(sys.argv[1:]);"
        "print(code, *(name for name in sys.modules if name.endswith(('.adapter', '.engine'))))"
    )
    words = ("--config-path", str(tmp_path), "--config-name", "exam", "action=dryrun")
    done = install("engine").python("-c", code, *words)
    assert done.stdout.splitlines()[-1] == "0 toy_evaluator.engine"
