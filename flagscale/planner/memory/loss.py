"""The memory of the last norm, the output layer and the loss on a rank of the last stage."""

from __future__ import annotations

from collections.abc import Mapping

from flagscale.checks.hetero.layout import Stage
from flagscale.frozen import dataclass, field
from flagscale.planner.sharding import Sharding
from flagscale.planner.training import Training


@dataclass(frozen=True)
class Loss:
    """The memory of the loss for one micro-batch. Figures are bytes on one rank."""

    kept: Mapping[str, float] = field(default_factory=dict)
    """From the forward until the backward pass, by name."""
    forward: float = 0.0
    """At the end of the forward pass, beside what is kept."""
    backward: float = 0.0
    """At the worst moment of the backward pass, beside what is kept."""


def loss_memory(training: Training, stage: Stage, sharding: Sharding) -> Loss:
    """Return the memory of everything behind the last layer.

    The engine's loss copies the logits to float, and keeps this copy as probabilities, which become their own
    gradients; those are copied to the precision of the logits (Megatron-core 0.19.2,
    tensor_parallel/cross_entropy.py). Compiled (fusions/fused_cross_entropy.py), the probabilities are one
    more copy. TransformerEngine's loss writes the gradients over the logits (2.11, triton/cross_entropy.py).
    Ours, with the `torch` layers, keeps the logits until it has written the gradients. Each prediction head
    has a loss of its own.
    """
    model, width = training.model, sharding.width
    logits = sharding.tokens * training.padded_vocabulary / stage.tp
    stream, rows = sharding.tokens * model.hidden * width, sharding.own_tokens * model.hidden * width
    is_ours = training.implementation == "torch" and not training.fused_loss
    kept = logits * (width if is_ours or training.loss_in_place else 4)
    # The gradients of the logits, if they are not in the place of what is kept.
    copy = 0.0 if training.loss_in_place or (width == 4 and not is_ours) else logits * width
    more = 0.0 if is_ours or training.loss_in_place else logits * 4 * training.fused_loss + copy
    # The gradients of the output layer's input, whole, then reduced and scattered, and of its weights.
    behind = stream + rows * sharding.sequence_parallel
    if not training.fused_gradients:
        behind += training.padded_vocabulary / stage.tp * model.hidden * width
    return Loss(
        kept={
            "last norm": 2 * rows + sharding.own_tokens * (8 if model.norm_bias else 4),
            "logits": (1 + model.prediction_heads) * kept,
            # Of a soft cap, the hyperbolic tangents.
            **({"capped logits": logits * width} if model.caps_logits else {}),
        },
        forward=more,
        # What one loss kept is gone once its gradients are copied.
        backward=max(copy, copy + behind - (kept if copy else 0.0)),
    )
