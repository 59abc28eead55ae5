"""The jobs of a sweep (`--multirun`): each needs a run directory of its own, or it would resume another's."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig

from flagscale.config.command import load_run_location
from flagscale.config.flags import SWEEP_FLAGS
from flagscale.config.source_map import as_written
from flagscale.errors import Problem, UserError

_START_NOTHING = ("query", "logs", "stop", "estimate")
"""Actions about a run that exists already, or about none."""


@dataclass(frozen=True)
class Swept:
    """One job of a sweep."""

    overrides: tuple[str, ...]
    exp_dir: Path | None
    """Its run directory without symbolic links; None if it cannot be read, which the job itself reports."""
    action: str


def is_sweep(words: Sequence[str]) -> bool:
    """Return whether a command line asks Hydra for several jobs."""
    return any(word in SWEEP_FLAGS or word.upper().endswith("HYDRA.MODE=MULTIRUN") for word in words)


_MOST_JOBS = 10_000
"""Hydra composes all jobs before the first one begins, at about ten per second."""


def endless(words: Sequence[str]) -> list[Problem]:
    """Return the reasons why Hydra would never come to the first job of a sweep."""
    problems, numbers = [], {}
    for word in words:
        key = word.partition("=")[0].lstrip("+")
        if (number := _values(word)) > 0:
            numbers[key] = number
            continue
        hint = "write range(START, STOP, STEP), with a STEP that leads from START to STOP"
        problems.append(Problem("this range has no numbers", f"command line: {key}", hint))
    if math.prod(numbers.values()) > _MOST_JOBS:
        swept = ", ".join(key for key, number in numbers.items() if number > 1)
        problems.append(Problem(f"this sweep has more than {_MOST_JOBS} jobs", f"command line: {swept}"))
    return problems


def _values(word: str) -> float:
    """Return how many values a word gives to its key; 1 if only the files tell."""
    try:
        value = OverridesParser.create().parse_rule(word, "override").value()
    except (HydraException, AttributeError):  # not an override
        return 1
    if isinstance(value, ChoiceSweep):
        return len(value.list)
    if not isinstance(value, RangeSweep) or value.start is None or value.stop is None:
        return 1
    try:
        return (value.stop - value.start) / value.step if value.step else 0
    except OverflowError:
        return math.inf


def swept_job(config: DictConfig, overrides: Sequence[str]) -> Swept:
    """Return the facts about a composed job that are needed before any job of its sweep starts."""
    try:
        exp_dir = Path(os.path.realpath(load_run_location(config).exp_dir))
    except UserError:
        exp_dir = None
    # An interpolation that fails is reported by the job itself.
    action = next((str(value) for key, value in config.items_ex(resolve=False) if key == "action"), "")
    return Swept(tuple(override.lstrip("+") for override in as_written(overrides)), exp_dir, action)


def shared_run_directories(jobs: Sequence[Swept]) -> list[Problem]:
    """Return a problem for each job whose run directory is that of an earlier one."""
    owners: dict[Path, Swept] = {}
    problems = []
    for job in jobs:
        if job.exp_dir is None or job.action in _START_NOTHING:
            continue
        owner = owners.setdefault(job.exp_dir, job)
        if owner is not job:
            one, other = (_own_overrides(*pair) for pair in ((owner, job), (job, owner)))
            what = f"the jobs `{one}` and `{other}` of this sweep have the same run directory {job.exp_dir}"
            written = shlex.quote(f"experiment.exp_dir={job.exp_dir}/${{hydra:job.num}}")
            hint = f"put the swept key or the job's number into it, for this and all later actions: {written}"
            problems.append(Problem(what, "experiment.exp_dir", hint))
    return problems


def _own_overrides(job: Swept, other: Swept) -> str:
    own = [override for override in job.overrides if override not in other.overrides]
    return " ".join(own or job.overrides)  # equal jobs: a value is given twice
