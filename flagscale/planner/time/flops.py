"""The floating-point operations of a step that the model itself needs."""

from __future__ import annotations

from flagscale.planner.model_shape import ModelShape
from flagscale.planner.parameters import layer_parameters
from flagscale.planner.training import Training


def model_flops(training: Training) -> float:
    """Return the operations of one step, of all ranks, forward and backward.

    Causal attention counts half, prediction heads count, looking up an embedding and computing again do not.
    """
    model = training.model
    of_kind = {is_moe: _layer(model, is_moe, training.sequence) for is_moe in {*model.experts_in}}
    layers = sum(of_kind[is_moe] for is_moe in model.experts_in)
    output = 2 * model.hidden * model.vocabulary
    head = 4 * model.hidden**2 + output + of_kind[model.experts_in[-1]]
    tokens = training.batch * training.sequence
    return 3.0 * tokens * (layers + output + model.prediction_heads * head)


def _layer(model: ModelShape, is_moe: bool, sequence: int) -> float:
    """Return the operations of one layer forward, per token."""
    weights = layer_parameters(model, 1, 1, 1, is_moe).weights
    active = sum(
        one.elements * (model.topk / model.experts if one.module.startswith("mlp.experts") else 1)
        for one in weights
        if len(one.shape) == 2
    )
    is_latent = model.attention == "mla"
    width = model.qk_nope_dim + model.rope_dim + model.v_dim if is_latent else 2 * model.head_dim
    return 2 * active + sequence * model.heads * width
