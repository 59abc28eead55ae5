"""A transport from another package reaches a host whose name cannot be resolved."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.outside.conftest import ROOT, Installed

EXPERIMENT = """
experiment:
  exp_name: far
  exp_dir: {folder}/out
  task: {{type: inference, backend: vllm, entrypoint: {folder}/program.py}}
  runner: {{hostfile: {folder}/hosts, platform: cpu, transport: subprocess}}
action: run
inference:
  llm: {{model: nobody/nothing}}
  generate: {{prompts: [hello]}}
"""
PROGRAM = "import sys, time; print('here I am', flush=True); time.sleep(100 * ('4' in sys.argv))"
"""Stands in for batch inference: it ends at once, or after 100 seconds if the batch size is 4."""

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def flagscale(install: Callable[..., Installed], tmp_path: Path) -> Iterator[Command]:
    """Return a function that runs FlagScale on an experiment whose only host is `hut-in-the-woods`."""
    (tmp_path / "far.yaml").write_text(EXPERIMENT.format(folder=tmp_path))
    (tmp_path / "hosts").write_text("hut-in-the-woods slots=1 type=cpu\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    installed = install("transport")

    def flagscale(*words: str) -> subprocess.CompletedProcess[str]:
        command = (str(ROOT / "run.py"), "--config-path", str(tmp_path), "--config-name", "far", *words)
        return installed.python(*command, env={"TOY_TRANSPORT_NOTES": str(tmp_path / "notes")})

    yield flagscale
    flagscale("action=stop")


def state(flagscale: Command) -> str:
    status = json.loads(flagscale("action=query", "+output=json").stdout)
    return str(status["state"])


def test_a_job_runs_through_the_transport(flagscale: Command, tmp_path: Path) -> None:
    done = flagscale("action=run")
    assert done.returncode == 0, done.stderr
    deadline = time.monotonic() + 60
    while (found := state(flagscale)) != "finished" and time.monotonic() < deadline:
        pass
    assert found == "finished"
    assert "here I am" in flagscale("action=logs").stdout
    asked = (tmp_path / "notes").read_text().splitlines()
    assert {"hut-in-the-woods start", "hut-in-the-woods status"} <= set(asked)


def test_a_job_is_stopped_through_the_transport(flagscale: Command, tmp_path: Path) -> None:
    done = flagscale("action=run", "inference.generate.batch_size=4")
    assert done.returncode == 0, done.stderr
    assert state(flagscale) in ("starting", "running")
    assert flagscale("action=stop").returncode == 0
    assert state(flagscale) == "stopped"
    assert "hut-in-the-woods stop" in (tmp_path / "notes").read_text()


def test_an_unknown_transport_is_refused_with_the_nearest_name(flagscale: Command) -> None:
    done = flagscale("action=dryrun", "experiment.runner.transport=subproces")
    assert done.returncode == 2
    assert "unknown transport `subproces`" in done.stderr
    assert "did you mean `subprocess`?" in done.stderr
