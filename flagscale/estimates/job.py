"""Estimate the job of a command: the whole estimate, or the lines that other actions add."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from flagscale import platforms
from flagscale.checks.schedule import last_batch
from flagscale.config.command import Request
from flagscale.config.schema import Experiment
from flagscale.config.source_map import SourceMap
from flagscale.errors import UserError
from flagscale.estimates.chips import ChipUnknown, chip_entries, chip_notes, chips_of
from flagscale.estimates.elsewhere import without_files
from flagscale.estimates.text import estimate_line, warning_text
from flagscale.estimates.training import refuse_other_engines, refusing, training_for
from flagscale.plan.stages import Checked, check_stages
from flagscale.planner.estimate import Estimate, estimate
from flagscale.values import Job

_PLATFORM = "experiment.runner.platform"


def estimate_of(request: Request, chip: str) -> tuple[Job, Estimate]:
    """Return a configuration's job and its estimate; `chip`: the command's `chip=`.

    Raises:
        UserError: with every mistake of the configuration, or what the planner does not know.
    """
    with platforms.any_platform():
        checked = checked_job(on_chip(request.config, chip), request.source_map)
        of_chip = chip_notes(checked.experiment, checked.job.hosts, chip)
        for notice in (*checked.notices, *checked.job.notices, *batch_notes(checked.job), *of_chip):
            print(f"note: {notice}", file=sys.stderr)
        return checked.job, _estimate(checked.job, checked.experiment, chip, request.source_map)


def batch_notes(job: Job) -> list[str]:
    """Return which step is estimated, if the batch grows."""
    if not job.arguments.get("step_batch_size_schedule"):
        return []
    return [f"of step_batch_size_schedule, steps of the last size are estimated: {last_batch(job.arguments)}"]


def on_chip(config: DictConfig, chip: str) -> DictConfig:
    """Return a configuration whose platform is the command's chip, unless it names one.

    The defaults of workers depend on the platform, which would be that of this machine.
    """
    if chip and OmegaConf.select(config, _PLATFORM, default="auto") == "auto":
        config = copy.deepcopy(config)
        OmegaConf.update(config, _PLATFORM, chip, force_add=True)
    return config


def checked_job(config: DictConfig, source_map: SourceMap) -> Checked:
    """Return the checked configuration; files of data that are missing here do not matter."""
    try:
        return check_stages(config, source_map, only_plans=True, any_hosts=True)
    except UserError as error:
        # Nobody should have to fix what is not estimated in any case.
        refuse_other_engines(OmegaConf.select(config, "experiment.task.backend"), source_map)
        group = OmegaConf.select(config, "experiment.task.type", default="train")
        if not (found := without_files(config, group, error, source_map)):
            raise
    without, notice = found
    print(f"note: {notice}", file=sys.stderr)
    return check_stages(without, source_map, only_plans=True, any_hosts=True)


@dataclass(frozen=True)
class ShortEstimate:
    """The lines about a job's memory and time that other commands add."""

    line: str = ""
    warning: str = ""
    """That the memory may not suffice; empty if it does with 95 %."""
    lacks_chip: bool = False
    """Whether the line only says how to name the chip."""

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.line, self.warning and f"warning: {self.warning}")))


def short_estimate(job: Job, experiment: Experiment, chip: str, source_map: SourceMap) -> ShortEstimate:
    """Return one line, and a warning if the memory may not suffice; it never raises UserError."""
    if not job.arguments or job.has_own_model:
        return ShortEstimate()  # the planner has no model of such jobs
    try:
        found = _estimate(job, experiment, chip, source_map)
    except UserError as error:
        line = f"memory: not estimated: {error.problems[0].what} (action=estimate says more)"
        return ShortEstimate(line, lacks_chip=isinstance(error, ChipUnknown) and not chip)
    return ShortEstimate(estimate_line(found), warning_text(found))


def _estimate(job: Job, experiment: Experiment, chip: str, source_map: SourceMap) -> Estimate:
    chips = chips_of(experiment, job.hosts, chip_entries(experiment), chip, source_map)
    with refusing("cannot estimate", experiment, source_map):
        return estimate(training_for(job, experiment, chips, source_map))
