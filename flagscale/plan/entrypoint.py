"""Check that the training program that `experiment.task.entrypoint` names exists."""

from __future__ import annotations

from pathlib import Path

from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem, UserError, nearest

_ROOT = Path(__file__).resolve().parents[2]
CLONE = _ROOT if (_ROOT / "vllm" / "vllm_flagscale").is_dir() else None
"""The clone that this package runs from; None if it is installed."""
_PROGRAMS = {
    "megatron.flagscale": _ROOT / "megatron" / "flagscale",
    "vllm_flagscale": (_ROOT / "vllm" if CLONE else _ROOT) / "vllm_flagscale",
}
"""The folder of each of our packages that hold programs."""


def check_entrypoint(entrypoint: str, source_map: SourceMap) -> None:
    """Raise `UserError` if a path, or a module name of ours, has no program; skip other modules."""
    if not entrypoint:
        return  # the engine's default
    if entrypoint.endswith(".py"):
        exists = Path(entrypoint).is_file()
    else:
        # Only our own modules can be looked up without importing an engine's package.
        ours = next((folder for name, folder in _PROGRAMS.items() if entrypoint.startswith(f"{name}.")), None)
        exists = ours is None or (ours / f"{entrypoint.rpartition('.')[2]}.py").is_file()
    if not exists:
        programs = _PROGRAMS["megatron.flagscale"].glob("train_*.py")
        known = [f"megatron.flagscale.{path.stem}" for path in programs]
        hint = nearest(entrypoint, [*known, "vllm_flagscale.server", "vllm_flagscale.generate"])
        where = source_map.where("experiment.task.entrypoint")
        raise UserError([Problem(f"program not found: `{entrypoint}`", where, hint)])
