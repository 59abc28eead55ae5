"""Check that the program that `experiment.task.entrypoint` names exists."""

from __future__ import annotations

import os

from flagscale.config.entrypoint import SOURCE_ROOT, find_entrypoint
from flagscale.config.schema import Experiment
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem, UserError, nearest

CLONE = SOURCE_ROOT if (SOURCE_ROOT / "vllm" / "vllm_flagscale").is_dir() else None
"""The clone that this package runs from; None if it is installed."""


def check_entrypoint(experiment: Experiment, source_map: SourceMap) -> None:
    """Raise `UserError` if the program is missing.

    A module other than ours is accepted if the job has another interpreter, or shell lines that may find it.
    """
    entrypoint, runner = experiment.task.entrypoint, experiment.runner
    if not entrypoint:
        return  # the engine's default
    found = find_entrypoint(entrypoint, experiment.envs.common().get("PYTHONPATH", "").split(os.pathsep))
    is_ours = entrypoint.startswith(("megatron.flagscale.", "vllm_flagscale."))
    is_elsewhere = runner.python is not None or bool(experiment.cmds.before_start)
    if not found.is_missing or (is_elsewhere and not is_ours and not entrypoint.endswith(".py")):
        return
    programs = (SOURCE_ROOT / "megatron" / "flagscale").glob("train_*.py")
    known = [f"megatron.flagscale.{path.stem}" for path in programs]
    hint = nearest(entrypoint, [*known, "vllm_flagscale.server", "vllm_flagscale.generate", *found.beside])
    where = source_map.where("experiment.task.entrypoint")
    raise UserError([Problem(f"program not found: `{entrypoint}`", where, hint)])
