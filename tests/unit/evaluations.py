"""Evaluation jobs from the keys of a task group, for the unit tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flagscale.config.schema import Commands, Environment, Experiment, Runner, Task
from flagscale.config.source_map import SourceMap
from flagscale.engines.lm_eval.adapter import LM_EVAL
from flagscale.errors import UserError
from flagscale.values import Host, Job

ONE = (Host(0, "localhost", 1, "cpu"),)
SERVED = {
    "model": "local-completions",
    "model_args": {"base_url": "http://127.0.0.1:8000/v1/completions", "model": "m", "tokenizer": "a/b"},
}


def evaluation(folder: Path, keys: Mapping[str, Any], hosts: tuple[Host, ...] = ONE, **runner: Any) -> Job:
    """Return the job of a task group; its run directory is `folder / "run"`."""
    experiment = Experiment(
        name="demo",
        exp_dir=folder / "run",
        task=Task(type="evaluate", backend="lm_eval"),
        runner=Runner(**runner),
        envs=Environment(),
        cmds=Commands(),
        arguments={"tasks": ["arc_easy"], **keys},
    )
    return LM_EVAL.build(experiment, hosts, SourceMap())


def mistakes(folder: Path, keys: Mapping[str, Any], *args: Any, **runner: Any) -> list[str]:
    """Return the mistakes for which `evaluation` refuses these keys, each in one line; [] if it does not."""
    try:
        evaluation(folder, keys, *args, **runner)
    except UserError as error:
        return [" | ".join(line.strip() for line in message.splitlines()) for message in error.messages]
    return []


def write_task(folder: Path, name: str = "mine", **keys: Any) -> Path:
    """Write a task with one example beside it, and return its file; `keys` replace those of the task."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text('{"q": "a", "choices": ["b", "c"], "right": 0}\n')
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "choices",
        "doc_to_target": "right",
        **keys,
    }
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(task))
    return file
