"""The whole estimate of a job: whether it fits, how fast it is, what limits it, and how sure that is."""

from __future__ import annotations

from flagscale.checks.hetero.layout import Stage
from flagscale.errors import Problem, UserError
from flagscale.frozen import dataclass, replace
from flagscale.planner.calibration import Calibration
from flagscale.planner.chips import Chip
from flagscale.planner.intervals import interval
from flagscale.planner.memory.stage_memory import OUTSIDE, StageMemory, Term, memory
from flagscale.planner.time.flops import model_flops
from flagscale.planner.time.speeds import peak
from flagscale.planner.time.step_time import StepTime, step_time
from flagscale.planner.training import Training


@dataclass(frozen=True)
class StageEstimate:
    """The memory of each rank of one stage, in bytes."""

    stage: Stage
    chip: Chip
    memory: StageMemory
    low: float
    """On the device, at least, with 95 %: that of what is reserved, and what is outside."""
    high: float
    """On the device, at most, with 95 %."""

    @property
    def fits(self) -> bool:
        return self.memory.device <= self.chip.memory_bytes

    @property
    def surely_fits(self) -> bool:
        """Whether the 95 % side fits too."""
        return self.high <= self.chip.memory_bytes

    @property
    def share(self) -> float:
        """The part of the chip's memory that is used."""
        return self.memory.device / self.chip.memory_bytes


@dataclass(frozen=True)
class Speed:
    """The time of a step and what follows from it."""

    step: StepTime
    low: float
    """Seconds of a step, at least, with 95 %."""
    high: float
    flops: float
    """Floating-point operations of the model per step, without recomputation."""
    tokens: int
    """Per step."""
    devices: int
    peak_flop_s: float
    """Of all devices together, in the precision of the job."""

    @property
    def tokens_s(self) -> float:
        return self.tokens / self.step.seconds

    @property
    def tokens_s_device(self) -> float:
        return self.tokens_s / self.devices

    @property
    def flop_s_device(self) -> float:
        """Of the model, per device."""
        return self.flops / self.step.seconds / self.devices

    @property
    def mfu(self) -> float:
        """Model FLOP utilization: the share of the peak."""
        return self.flops / self.step.seconds / self.peak_flop_s

    @property
    def parts(self) -> dict[str, float]:
        """The seconds of a step, by what the stage that works longest does then."""
        step = self.step
        return {
            "compute": step.compute_s,
            "communication": step.communication_s,
            "bubble": step.bubble_s,
            "optimizer": step.optimizer_s,
            "host": step.host_s,
        }


@dataclass(frozen=True)
class Estimate:
    """The memory that a job needs, and its speed."""

    training: Training
    stages: tuple[StageEstimate, ...]
    speed: Speed | None
    """None if a figure of a chip is missing."""
    missing: tuple[Problem, ...] = ()
    """Why the time of a step is not known."""
    is_calibrated: bool = False

    @property
    def fullest(self) -> StageEstimate:
        """The stage that uses most of its chip's memory."""
        return max(self.stages, key=lambda one: one.share)

    @property
    def fits(self) -> bool:
        return all(one.fits for one in self.stages)

    @property
    def surely_fits(self) -> bool:
        return all(one.surely_fits for one in self.stages)

    @property
    def limit(self) -> str:
        """What limits the job: memory if it does not fit, otherwise the largest part of a step; "" if that
        is not known.
        """
        if not self.fits:
            return "memory"
        parts = self.speed.parts if self.speed else {}
        return max(parts, key=parts.__getitem__, default="")


def estimate(training: Training, calibration: Calibration | None = None) -> Estimate:
    """Return the estimate of a job.

    Args:
        training: the job.
        calibration: the constants fitted to this machine and software; without, the published errors are
            those of a machine that was never measured.

    Raises:
        UserError: the planner has no model of a part of the job.
    """
    is_calibrated = calibration is not None
    low, high = interval(training, "reserved", is_calibrated)
    offset = calibration.memory_bytes if calibration else 0.0
    own = (Term("measured beyond these", offset, OUTSIDE),) if offset else ()
    stages = []
    for stage, found in zip(training.layout.stages, memory(training), strict=True):
        all_terms = replace(found, terms=(*found.terms, *own))
        chip, outside = training.blocks[stage.mesh].chip, all_terms.of(OUTSIDE)
        ends = (factor * all_terms.reserved + outside for factor in (low, high))
        stages.append(StageEstimate(stage, chip, all_terms, *ends))
    try:
        return Estimate(training, tuple(stages), _speed(training, calibration), (), is_calibrated)
    except UserError as error:  # the memory is known all the same
        return Estimate(training, tuple(stages), None, error.problems, is_calibrated)


def _speed(training: Training, calibration: Calibration | None) -> Speed:
    step = step_time(training, calibration=calibration)
    low, high = interval(training, "time", calibration is not None)
    meshes = zip(training.layout.meshes, training.blocks, strict=True)
    compute = training.numerics.compute
    return Speed(
        step=step,
        low=low * step.seconds,
        high=high * step.seconds,
        flops=model_flops(training),
        tokens=training.batch * training.sequence,
        devices=training.layout.world_size,
        peak_flop_s=sum(mesh.ranks * peak(block.chip, compute) for mesh, block in meshes),
    )
