"""Emu3 as the model of an engine: which forms vLLM cannot load, and what it cannot divide."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flagscale.checks.emu3_folder import (
    PUBLISHED,
    division_violations,
    is_emu3,
    name_problem,
    original_problem,
)
from flagscale.checks.model_folder import is_path, read_config
from flagscale.errors import Violation


def serves_emu3(values: Mapping[str, Any]) -> bool:
    """Return whether the model of these arguments (by dest) is known to be Emu3, without asking a hub."""
    # As the engine's own program: it reads `config.json` from `hf_config_path` if that is given.
    source = str(values.get("hf_config_path") or values.get("model"))
    return source in PUBLISHED.values() or is_emu3(_config(source))


def original_model(values: Mapping[str, Any]) -> str:
    """Return why the model is an original one of BAAI, and the way to one that works; "" if it is not."""
    model = str(values.get("model"))
    if is_path(model) or os.path.isdir(model):
        return original_problem(Path(model), _config(model))
    return name_problem(model)


def emu3_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield what an engine cannot do with Emu3, by dest; nothing for other models."""
    if what := original_model(values):
        yield "model", what
    elif serves_emu3(values):
        yield from division_violations(values)


def _config(source: str) -> Mapping[str, Any]:
    if not os.path.isfile(Path(source) / "config.json"):  # also for names that no file system takes
        return {}
    try:
        return read_config(Path(source))
    except ValueError:
        return {}  # reported already
