"""Jobs of vLLM from the keys of a task group, for the unit tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flagscale.config.schema import Commands, Environment, Experiment, Runner, Task
from flagscale.config.source_map import SourceMap
from flagscale.engines.vllm.adapter import VLLM
from flagscale.errors import UserError
from flagscale.values import Host, Job

ONE = (Host(0, "localhost", 1, "cpu"),)


def gpus(*slots: int) -> tuple[Host, ...]:
    """Return hosts with these numbers of GPUs."""
    return tuple(Host(rank, f"gpu-{rank}", count, "nvidia") for rank, count in enumerate(slots))


def inference(model: str, generate: dict[str, Any] | None = None, **llm: Any) -> dict[str, Any]:
    """Return a task group of batch inference with one prompt."""
    return {"llm": {"model": model, **llm}, "generate": {"prompts": ["a"], **(generate or {})}}


def job_of(
    folder: Path,
    kind: str,
    arguments: Mapping[str, Any],
    hosts: tuple[Host, ...] = ONE,
    envs: Mapping[str, Any] | None = None,
    **runner: Any,
) -> Job:
    """Return the job of a task group; its run directory is `folder / "run"`."""
    experiment = Experiment(
        name="demo",
        exp_dir=folder / "run",
        task=Task(type=kind, backend="vllm"),  # type: ignore[arg-type]
        runner=Runner(**runner),
        envs=Environment.model_validate(dict(envs or {})),
        cmds=Commands(),
        arguments=dict(arguments),
    )
    return VLLM.build(experiment, hosts, SourceMap())


def refusal(*args: Any, **more: Any) -> str:
    """Return the message with which `job_of` refuses these arguments."""
    with pytest.raises(UserError) as raised:
        job_of(*args, **more)
    return str(raised.value)
