"""Memory that is held throughout a step: parameters, gradients, the optimizer's states, buffers that stay."""

from __future__ import annotations

from collections.abc import Iterator

from flagscale.checks.hetero.layout import Stage
from flagscale.planner.parameters import Parameters, Weight
from flagscale.planner.sharding import Sharding
from flagscale.planner.training import Training

WORKSPACE = 2**25
"""Bytes of one workspace of multiplications if CUBLAS_WORKSPACE_CONFIG is `:4096:8`, as deterministic mode
needs it."""
CONTEXT, CHANNEL = 2**29, 20 * 2**20
"""Bytes outside of the allocator: of the driver, and of each channel of a group of ranks that communicates
(buffers of three protocols, to send and to receive)."""
CHANNEL_BYTES_S, CHANNELS = 20e9, (2, 32)
"""A channel for each such share of the link's bandwidth; the least and the most. At 450 GB/s, a group needs
440 MiB; 544 to 688 MB were reported (github.com/NVIDIA/nccl/issues/964)."""


def static_memory(training: Training, stage: Stage, parameters: Parameters) -> Iterator[tuple[str, float]]:
    """Yield the name and bytes of all that a rank of a stage holds throughout a step."""
    numerics = training.numerics
    yield "parameters", parameters.total * numerics.parameter_bytes
    yield "gradients", parameters.total * numerics.gradient_bytes
    states: float = parameters.total
    if numerics.distributed:
        copies, expert_copies = (max(1, size // numerics.instances) for size in training.copies(stage))
        states = parameters.dense / copies + parameters.expert / expert_copies
    yield "optimizer", states * numerics.state_bytes
    if numerics.compute in ("fp8", "fp4") and numerics.parameter_bytes > 1:
        # Cached for all micro-batches of a step, along both dimensions.
        layers = [weight for weight in parameters.weights if _is_product(weight) and weight.part != "output"]
        linear = sum(weight.elements for weight in layers)
        yield f"parameters in {numerics.compute}", linear * (2 if numerics.compute == "fp8" else 1)


def engine_buffers(
    training: Training, stage: Stage, parameters: Parameters, sharding: Sharding
) -> Iterator[tuple[str, float]]:
    """Yield what the engine allocates once and does not free."""
    is_te = training.implementation == "transformer_engine"
    groups = is_te and training.grouped_experts and any("experts" in one.module for one in parameters.weights)
    # PyTorch has one for each of two threads (forward, backward), TransformerEngine one of its own, and four
    # more for grouped products (`get_cublas_workspace_size_bytes`).
    own = training.blocks[stage.mesh].chip.workspace_bytes
    of_torch = max(own, WORKSPACE) if training.deterministic else own
    yield "workspaces of multiplications", 2 * of_torch + (is_te + 4 * groups) * own
    if training.implementation == "local":
        # The scores of attention are computed in a buffer of the engine's own.
        pairs = sharding.tokens * sharding.sequence * training.model.heads / sharding.tp
        yield "buffer of attention's scores", pairs * sharding.width
    if is_te and training.fused_gradients:
        # Products that add to the gradient buffer return a tensor that nobody reads, one for each shape
        # (transformer_engine/pytorch/module/base.py, `get_dummy_wgrad`).
        shapes = {weight.shape for weight in parameters.weights if _is_product(weight)}
        width = training.numerics.parameter_bytes
        yield "placeholders of weight gradients", sum(rows * columns for rows, columns in shapes) * width
    if sharding.sequence_parallel and stage.index == len(training.layout.stages) - 1:
        # The output layer gathers its input into a buffer of its own.
        yield "gathered input of the output layer", sharding.tokens * training.model.hidden * sharding.width


def outside_memory(training: Training, stage: Stage, sharding: Sharding) -> Iterator[tuple[str, float]]:
    """Yield what the driver and the communication library hold on the device."""
    yield "context of the driver", CONTEXT
    experts = training.layout.meshes[stage.mesh].ep * training.blocks[stage.mesh].expert_tp
    sizes = (
        stage.tp,
        stage.cp,
        stage.dp,
        len(training.layout.stages),
        experts if training.model.experts else 1,
    )
    least, most = CHANNELS
    channels = round(training.blocks[stage.mesh].chip.inside.bytes_s / CHANNEL_BYTES_S)
    groups = sum(size > 1 for size in sizes)
    if training.overlap_tensor and stage.tp > 1:
        # One for each product and direction whose communication overlaps (`initialize_ub`).
        yield "buffers of overlapped products", 10 * sharding.tokens * training.model.hidden * sharding.width
    yield "communicators", CHANNEL * min(max(channels, least), most) * groups


def _is_product(weight: Weight) -> bool:
    """Return whether TransformerEngine multiplies by a weight: of linear layers, but not of routers."""
    return len(weight.shape) == 2 and weight.part != "embedding" and not weight.module.endswith("router")
