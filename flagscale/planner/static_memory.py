"""What a rank holds throughout a step: parameters, gradients, the optimizer's states, buffers that stay."""

from __future__ import annotations

from collections.abc import Iterator

from flagscale.checks.hetero.layout import Stage
from flagscale.planner import te_layer
from flagscale.planner.parameters import Parameters
from flagscale.planner.training import Training

WORKSPACE = 32 * 2**20
"""Bytes of one workspace of the library of multiplications, as both allocate it on recent chips: PyTorch for
each of two threads (forward, backward), TransformerEngine once, and four times more for grouped products
(`get_cublas_workspace_size_bytes`)."""


def static_memory(training: Training, stage: Stage, parameters: Parameters) -> Iterator[tuple[str, float]]:
    """Yield the name and bytes of all that a rank of a stage holds throughout a step."""
    numerics = training.numerics
    yield "parameters", parameters.total * numerics.parameter_bytes
    yield "gradients", parameters.total * numerics.gradient_bytes
    states: float = parameters.total
    if numerics.distributed:
        copies, expert_copies = (
            max(1, copies // numerics.instances) for copies in copies_of(training, stage)
        )
        states = parameters.dense / copies + parameters.expert / expert_copies
    yield "optimizer", states * numerics.state_bytes


def copies_of(training: Training, stage: Stage) -> tuple[int, int]:
    """Return over how many ranks the gradients of dense weights, and those of experts, are reduced."""
    mesh, block = training.layout.meshes[stage.mesh], training.blocks[stage.mesh]
    ranks = stage.tp * stage.cp * stage.dp
    return stage.cp * stage.dp, max(1, ranks // (block.expert_tp * mesh.ep))


def engine_buffers(
    training: Training, stage: Stage, parameters: Parameters, setting: te_layer.Setting
) -> Iterator[tuple[str, float]]:
    """Yield what the engine allocates once and does not free."""
    is_te = training.implementation == "transformer_engine"
    groups = is_te and training.grouped_experts and any("experts" in one.module for one in parameters.weights)
    yield "workspaces of multiplications", WORKSPACE * (2 + is_te + 4 * groups)
    if training.implementation == "local":
        # The scores of attention are computed in a buffer of the engine's own.
        pairs = setting.tokens * setting.sequence * training.model.heads / setting.tp
        yield "buffer of attention's scores", pairs * setting.width
    if is_te and training.fused_gradients:
        # Products that add to the gradient buffer return a tensor that nobody reads, one for each shape
        # (transformer_engine/pytorch/module/base.py, `get_dummy_wgrad`).
        shapes = {weight.shape for weight in parameters.weights if _is_linear(weight.part, weight.shape)}
        width = training.numerics.parameter_bytes
        yield "placeholders of weight gradients", sum(rows * columns for rows, columns in shapes) * width
    if setting.sequence_parallel and stage.index == len(training.layout.stages) - 1:
        # The output layer gathers its input into a buffer of its own.
        yield "gathered input of the output layer", setting.tokens * training.model.hidden * setting.width


def _is_linear(part: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and part != "embedding"
