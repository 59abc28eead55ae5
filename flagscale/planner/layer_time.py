"""Seconds of one transformer layer on one rank for one micro-batch, forward and backward.

A search needs no `Training` for each of its options. It calls `speeds(chip, precision, constants)` and
`network(chip, ranks per host, constants)` once for each chip, and then, in about 0.1 ms,

    layer_time(model, is_moe, Division(sequence, micro_batch, tp=8, ...), speeds, network)

whose `forward`, `backward` and `again(...)` say what passes in each direction, and what recomputation adds.
"""

from __future__ import annotations

from collections.abc import Iterable

from flagscale.frozen import dataclass
from flagscale.planner.collectives import Network
from flagscale.planner.division import Division
from flagscale.planner.model_shape import ModelShape
from flagscale.planner.pieces import Pieces
from flagscale.planner.seconds import Piece, Seconds
from flagscale.planner.speeds import Speeds

RECOMPUTED = {
    "core_attn": ("core_attn",),
    "layernorm": ("norm",),
    "mla_up_proj": ("up", "rope"),
    "mlp": ("fc1", "act", "fc2"),
    "moe_act": ("expert_act",),
    "moe": ("router", "dispatch", "experts", "expert_act", "combine", "shared"),
    "shared_experts": ("shared",),
}
"""The pieces that the engine's `recompute_modules` compute again."""


CAPTURED = {
    "attn": ("norm", "qkv", "down", "up", "rope", "core_attn", "proj", "add"),
    "mlp": ("norm", "fc1", "act", "fc2", "add"),
    "moe": ("norm", "router", "dispatch", "experts", "expert_act", "combine", "shared", "add"),
    "moe_router": ("norm", "router", "shared"),
    "moe_preprocess": (),
}
"""The pieces that a CUDA graph of one of the engine's `cuda_graph_modules` starts without the host. If only
one half of a layer is captured, the norm and the sum of the other half count with it."""


@dataclass(frozen=True)
class LayerTime:
    """All pieces of one layer, or of what is before or behind the layers."""

    forward: Seconds
    backward: Seconds
    """Without anything that is computed again."""
    pieces: tuple[Piece, ...]

    def again(self, modules: Iterable[str]) -> Seconds:
        """Return what the backward pass computes again if these `recompute_modules` are set."""
        chosen = {name for module in modules for name in RECOMPUTED.get(module, ())}
        return _sum(piece.forward for piece in self.pieces if piece.module in chosen)


def without_host(pieces: Iterable[Piece], modules: Iterable[str]) -> list[Piece]:
    """Return pieces of which the host starts none that a CUDA graph of these modules contains."""
    captured = {name for module in modules for name in CAPTURED.get(module, ())}
    return [
        Piece(piece.module, piece.forward.started(), piece.backward.started())
        if piece.module in captured
        else piece
        for piece in pieces
    ]


def layer_time(
    model: ModelShape, is_moe: bool, division: Division, speeds: Speeds, network: Network
) -> LayerTime:
    """Return the time of one layer."""
    return summed(Pieces(model, division, speeds, network).layer(is_moe))


def summed(pieces: Iterable[Piece]) -> LayerTime:
    """Return some pieces together."""
    found = tuple(pieces)
    return LayerTime(_sum(piece.forward for piece in found), _sum(piece.backward for piece in found), found)


def _sum(parts: Iterable[Seconds]) -> Seconds:
    found = Seconds()
    for part in parts:
        found += part
    return found
