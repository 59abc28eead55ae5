"""The time of a step: its layers, the pipeline, gradients, the optimizer."""

from __future__ import annotations

from collections.abc import Sequence

from flagscale.frozen import dataclass, replace
from flagscale.planner.calibration import Calibration
from flagscale.planner.chips import Link
from flagscale.planner.time.collectives import Network
from flagscale.planner.time.constants import Constants, constants
from flagscale.planner.time.stage_time import MeshTimes, StageTimes
from flagscale.planner.time.timeline import Durations, Timeline, walk
from flagscale.planner.training import Training

DEFAULT = constants()


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step. The five parts are those of the stage that limits, and add up to `seconds`."""

    seconds: float
    compute_s: float
    communication_s: float
    """That no computation hides: of layers, of gradients and of parameters."""
    bubble_s: float
    """In which the stage waits for others."""
    optimizer_s: float
    host_s: float
    """That belong to no micro-batch: data, logging, and what a calibration adds."""
    stage: int
    """The stage that works longest: the one that limits."""
    timeline: Timeline
    """Not calibrated."""


def step_time(
    training: Training, constants: Constants = DEFAULT, calibration: Calibration | None = None
) -> StepTime:
    """Return the time of one step.

    Raises:
        UserError: a figure of a chip is not known, or micro-batches cannot be divided over stages.
    """
    correction = calibration or Calibration()
    constants = replace(constants, launch_s=correction.host * constants.launch_s)
    meshes = [MeshTimes(training, number, constants) for number in range(len(training.layout.meshes))]
    stages = [StageTimes(training, stage, meshes[stage.mesh]) for stage in training.layout.stages]
    chunks = [stage.chunks() for stage in stages]
    durations = Durations(
        forward=tuple(tuple(chunk.forward for chunk in of) for of in chunks),
        backward=tuple(tuple(chunk.backward for chunk in of) for of in chunks),
        transfer=tuple(_transfer(training, stages, number) for number in range(len(stages))),
        # The engine overlaps messages in interleaved pipelines only; meshes have extra micro-batches for it.
        is_blocking=len(meshes) == 1 and not (training.overlap_pipeline and training.layout.chunks > 1),
    )
    timeline = walk(training.layout, training.micro_batches, durations, training.group)
    tied = _tied_s(training, stages)
    reduced = [
        tied[number]
        + _exposed(stage.reduce_s(), training.overlap_gradients, sum(one.backward[-1] for one in of), stage)
        for number, (stage, of) in enumerate(zip(stages, chunks, strict=True))
    ]
    gather = max(
        _exposed(stage.gather_s(), training.overlap_parameters, sum(one.forward for one in of), stage)
        for stage, of in zip(stages, chunks, strict=True)
    )
    after = max(end + more for end, more in zip(timeline.end, reduced, strict=True))
    update = max(stage.update_s() for stage in stages) + max(stage.norm_s() for stage in stages)
    slow = max(range(len(stages)), key=lambda number: timeline.busy[number])
    inner = sum(chunk.communication(training.micro_batches) for chunk in chunks[slow])
    return StepTime(
        seconds=correction.seconds(after + update + gather + constants.step_s),
        compute_s=correction.scale * (timeline.busy[slow] - inner),
        communication_s=correction.scale * (inner + after - timeline.seconds + gather),
        bubble_s=correction.scale * timeline.idle[slow],
        optimizer_s=correction.scale * update,
        host_s=correction.seconds(constants.step_s),
        stage=slow,
        timeline=timeline,
    )


def _exposed(communication: float, is_overlapped: bool, window: float, stage: StageTimes) -> float:
    """Return what is exposed of a collective over all weights of a stage.

    With overlap it is cut into buckets, here one for each layer; nothing is left that could hide the last.
    """
    if not is_overlapped:
        return communication
    return max(communication - window, communication / max(1, stage.stage.layers))


def _transfer(training: Training, stages: Sequence[StageTimes], number: int) -> float:
    """Return the seconds of a message from a stage to the next one, from the last one to the first."""
    source, target = stages[number], stages[(number + 1) % len(stages)]
    if source is target or (number == len(stages) - 1 and training.layout.chunks == 1):
        return 0.0
    width = source.of_mesh.speeds.width
    if source.stage.mesh == target.stage.mesh:
        nbytes = source.of_mesh.operations.sharding.own_tokens * training.model.hidden * width
        return source.network.send(nbytes, _is_inside(source, target))
    samples = training.blocks[source.stage.mesh].micro_batch * source.stage.dp
    whole = samples * training.sequence * training.model.hidden * width
    ends = [(one.network, len(one.stage.ranks)) for one in (source, target)]
    is_known = source.stage.mesh < len(training.crossings) and target.stage.mesh == source.stage.mesh + 1
    link = training.crossings[source.stage.mesh] if is_known else None
    return crossing_s(whole, ends, link, training.layout.cpu_communication)


def crossing_s(
    nbytes: float, ends: Sequence[tuple[Network, int]], link: Link | None, through_host: bool
) -> float:
    """Return the seconds of a micro-batch's activations from one mesh to another.

    Args:
        nbytes: of all ranks together; each sends a part of its own.
        ends: the network and the ranks of both stages.
        link: between the meshes, if it is known.
        through_host: whether the message is copied through the memory of both hosts.
    """
    slowest = max(network.send(nbytes / ranks, False) for network, ranks in ends)
    if link is not None:
        slowest = max(slowest, link.latency_s + nbytes / min(ranks for _, ranks in ends) / link.bytes_s)
    return slowest * (_COPIES if through_host else 1)


_COPIES = 3
"""Times that a message moves if it is copied through the memory of both hosts."""


def _tied_s(training: Training, stages: Sequence[StageTimes]) -> list[float]:
    """Return the seconds in which the first and the last stage add the gradients of a shared embedding."""
    found = [0.0] * len(stages)
    if training.model.tied and len(stages) > 1:
        is_inside = _is_inside(stages[0], stages[-1])
        for number in (0, -1):
            stage = stages[number]
            weights = training.padded_vocabulary * training.model.hidden / stage.stage.tp
            found[number] = stage.network.send(weights * training.numerics.gradient_bytes, is_inside)
    return found


def _is_inside(source: StageTimes, target: StageTimes) -> bool:
    """Return whether no message between two stages leaves its node."""
    if source.stage.mesh != target.stage.mesh:
        return False
    domain = source.network.domain
    ends = {
        rank // domain for stage in (source, target) for rank in (stage.stage.ranks[0], stage.stage.ranks[-1])
    }
    return len(ends) == 1
