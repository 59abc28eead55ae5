"""Seconds of one transformer layer on one rank for one micro-batch, forward and backward.

A search needs no `Training` for each of its options. It calls `speeds(chip, precision, constants)` and
`network(chip, ranks per host, constants)` once for each chip, and then, in about 0.1 ms,

    layer_time(model, is_moe, Sharding(sequence, micro_batch, tp=8, ...), speeds, network)

whose `forward` and `backward` are the seconds of each direction; `recomputed(modules)` is what recomputation
adds.
"""

from __future__ import annotations

from collections.abc import Iterable

from flagscale.frozen import dataclass
from flagscale.planner.model_shape import ModelShape
from flagscale.planner.sharding import Sharding
from flagscale.planner.time.collectives import Network
from flagscale.planner.time.operations import LayerOperations
from flagscale.planner.time.seconds import Operation, Seconds
from flagscale.planner.time.speeds import Speeds

RECOMPUTED = {
    "core_attn": ("core_attn",),
    "layernorm": ("norm",),
    "mla_up_proj": ("up", "rope"),
    "mlp": ("fc1", "act", "fc2"),
    "moe_act": ("expert_act",),
    "moe": ("router", "dispatch", "experts", "expert_act", "combine", "shared"),
    "shared_experts": ("shared",),
}
"""The operations that the engine's `recompute_modules` compute again."""

CAPTURED = {
    "attn": ("norm", "qkv", "down", "up", "qk_norm", "rope", "core_attn", "proj", "post_norm", "add"),
    "mlp": ("norm", "fc1", "act", "fc2", "post_norm", "add"),
    "moe": (
        *("norm", "router", "dispatch", "experts", "expert_act", "combine", "shared", "post_norm"),
        "add",
    ),
    "moe_router": ("norm", "router", "shared"),
    "moe_preprocess": (),
}
"""The operations that a CUDA graph of one of the engine's `cuda_graph_modules` starts without the host. If
only one half of a layer is captured, the norm and the sum of the other half count with it."""


@dataclass(frozen=True)
class LayerTime:
    """All operations of one layer, or of what is before or behind the layers."""

    forward: Seconds
    backward: Seconds
    """Without anything that is computed again."""
    operations: tuple[Operation, ...]

    def recomputed(self, modules: Iterable[str]) -> Seconds:
        """Return what the backward pass computes again if these `recompute_modules` are set."""
        chosen = {name for module in modules for name in RECOMPUTED.get(module, ())}
        return _sum(operation.forward for operation in self.operations if operation.module in chosen)


def without_host(operations: Iterable[Operation], modules: Iterable[str]) -> list[Operation]:
    """Return operations of which the host starts none that a CUDA graph of these modules contains."""
    captured = {name for module in modules for name in CAPTURED.get(module, ())}
    return [
        Operation(operation.module, operation.forward.started(), operation.backward.started())
        if operation.module in captured
        else operation
        for operation in operations
    ]


def layer_time(
    model: ModelShape, is_moe: bool, sharding: Sharding, speeds: Speeds, network: Network
) -> LayerTime:
    """Return the time of one layer."""
    return summed(LayerOperations(model, sharding, speeds, network).layer(is_moe))


def summed(operations: Iterable[Operation]) -> LayerTime:
    """Return some operations together."""
    found = tuple(operations)
    return LayerTime(
        _sum(operation.forward for operation in found), _sum(operation.backward for operation in found), found
    )


def _sum(parts: Iterable[Seconds]) -> Seconds:
    found = Seconds()
    for part in parts:
        found += part
    return found
