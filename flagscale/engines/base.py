"""The contract of an engine adapter. Packages add one through the entry-point group `flagscale.engines`."""

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
    """One engine: its task types, and the pure function that turns an experiment into a job.

    `build` raises `UserError` with every mistake of the task level that can be found without the engine.
    """

    name: str
    task_types: tuple[str, ...]
    distributions: tuple[str, ...]
    """The engine's names on the package index, one of which is installed; hosts must have equal versions."""
    build: Callable[[Experiment, tuple[Host, ...], SourceMap], Job]
    check: Callable[[Task, Mapping[str, Any], SourceMap], list[Problem]]
    """Returns the mistakes that the task group shows whatever the hosts are: names, types, choices, rules."""
