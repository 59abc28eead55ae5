"""What an engine adapter is. A third party adds one by the entry-point group `flagscale.engines`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flagscale.config.schema import Experiment, Task
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem
from flagscale.values import Host, Job


@dataclass(frozen=True)
class Engine:
    """One engine: the task types it does, and the pure function that makes a job of an experiment.

    `build` raises `UserError` with every mistake of the task level that can be seen without the engine.
    """

    name: str
    task_types: tuple[str, ...]
    distributions: tuple[str, ...]
    """The package-index names of the engine, any of which will do; its version is compared between hosts."""
    build: Callable[[Experiment, tuple[Host, ...], SourceMap], Job]
    check: Callable[[Task, Mapping[str, Any], SourceMap], list[Problem]]
    """The mistakes of the task group that need nothing else: names, types, choices, duplicates."""
