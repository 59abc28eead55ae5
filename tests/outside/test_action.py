"""An action from another package is performed, listed and suggested like the built-in ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.outside.conftest import Installed

EXPERIMENT = """
experiment:
  exp_name: counted
  exp_dir: {folder}/out
  task: {{type: inference, backend: vllm}}
  runner: {{platform: cpu, nproc_per_node: 3}}
inference:
  llm: {{model: nobody/nothing}}
  generate: {{prompts: [hello]}}
"""

Command = Callable[..., CompletedProcess[str]]


@pytest.fixture
def flagscale(install: Callable[..., Installed], tmp_path: Path) -> Command:
    """Return a function that runs FlagScale, with the package installed, on a small experiment."""
    (tmp_path / "counted.yaml").write_text(EXPERIMENT.format(folder=tmp_path))
    words = ("--config-path", str(tmp_path), "--config-name", "counted")
    return lambda *more: install("action").flagscale(*words, *more)


def test_the_action_is_performed(flagscale: Command) -> None:
    done = flagscale("action=count")
    assert (done.returncode, done.stdout) == (0, "3 slots on 1 host\n"), done.stderr


def test_mistakes_are_reported_as_for_every_action(flagscale: Command) -> None:
    done = flagscale("action=count", "experiment.runner.nnode=2")
    assert done.returncode == 2
    assert "unknown key `nnode`" in done.stderr


def test_the_help_lists_the_action(install: Callable[..., Installed]) -> None:
    assert "count, run, test" in install("action").flagscale("--help").stdout


def test_a_misspelt_action_gets_the_nearest_name(flagscale: Command) -> None:
    done = flagscale("action=coutn")
    assert done.returncode == 2
    assert "did you mean `count`?" in done.stderr
