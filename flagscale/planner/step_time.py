"""The time of a step: layers, pipeline, gradients, optimizer."""

from __future__ import annotations

import math

from flagscale.checks.hetero.layout import Stage
from flagscale.frozen import dataclass
from flagscale.planner.calibration import Calibration
from flagscale.planner.collectives import Group, Network, network
from flagscale.planner.constants import Constants, constants
from flagscale.planner.layer_time import LayerTime, layer_time, summed
from flagscale.planner.parameters import stage_parameters
from flagscale.planner.pieces import Division, Pieces, Seconds
from flagscale.planner.schedule import Durations, Timeline, walk
from flagscale.planner.speeds import Speeds, speeds
from flagscale.planner.training import Training

DEFAULT = constants()


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step. The four parts, those of the stage that limits, add up to `seconds`."""

    seconds: float
    compute_s: float
    communication_s: float
    """That no computation hides: of layers, of gradients and of parameters."""
    bubble_s: float
    """In which the stage waits for others."""
    optimizer_s: float
    stage: int
    """The stage that works longest: the one that limits."""
    timeline: Timeline
    """Without calibration."""


def step_time(
    training: Training, constants: Constants = DEFAULT, calibration: Calibration | None = None
) -> StepTime:
    """Return the time of one step.

    Raises:
        UserError: a figure of a chip is not known, or micro-batches cannot be divided over stages.
    """
    stages = [_Stage(training, stage, constants) for stage in training.layout.stages]
    times = [one.chunk_times() for one in stages]
    is_interleaved = training.layout.chunks > 1
    durations = Durations(
        forward=tuple(tuple(chunk.forward for chunk in of) for of in times),
        backward=tuple(tuple(chunk.backward for chunk in of) for of in times),
        transfer=tuple(_transfer(training, stages, number) for number in range(len(stages))),
        is_blocking=not (is_interleaved and training.overlap_pipeline),
    )
    timeline = walk(training.layout, training.micro_batches, durations)
    reduced = [one.reduce_s(of[0].backward[-1]) for one, of in zip(stages, times, strict=True)]
    gathered = [one.gather_s(of[0].forward) for one, of in zip(stages, times, strict=True)]
    updates = [one.update_s() for one in stages]
    after = max(end + more for end, more in zip(timeline.end, reduced, strict=True))
    update = max(updates) + max(one.norm_s() for one in stages)
    gather = max(gathered)
    seconds = after + update + gather + constants.step_s
    slow = max(range(len(stages)), key=lambda number: timeline.busy[number])
    exposed = sum(chunk.communication for chunk in times[slow]) + reduced[slow] + gather
    ...
