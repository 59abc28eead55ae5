"""The memory of a stage's layers for one micro-batch: kept, and needed in backward passes beside that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flagscale.checks.hetero.layout import Stage
from flagscale.frozen import dataclass
from flagscale.planner.memory import te_layer
from flagscale.planner.memory.layer_kind import layer_kind, layer_sizes
from flagscale.planner.memory.layer_memory import kept_parts
from flagscale.planner.memory.own_norms import own_norm_parts
from flagscale.planner.sharding import Sharding, sharding_of
from flagscale.planner.training import Training


@dataclass(frozen=True)
class Layers:
    """One layer of each kind that a model has, dense (False) or with experts (True), on a rank of a stage.

    Figures are bytes.
    """

    sharding: Sharding
    whole: Mapping[bool, float]
    """Kept if nothing is computed again."""
    kept: Mapping[bool, float]
    """Kept beside the modules that selective recomputation computes again."""
    backward: Mapping[bool, float]
    """Needed at the worst moment of the backward pass beside what was kept."""

    @property
    def stream(self) -> float:
        """The bytes of a layer's input per element of its width."""
        return self.sharding.own_tokens * self.sharding.width


def stage_layers(training: Training, stage: Stage) -> Layers:
    """Return the layers of a stage.

    Raises:
        UserError: the table of kept bytes does not have such layers.
    """
    sharding, kinds = sharding_of(training, stage.mesh), {*training.model.experts_in}
    modules = training.recompute.modules
    whole = {is_moe: sum(layer_kept(training, stage, is_moe).values()) for is_moe in kinds}
    kept = {is_moe: sum(layer_kept(training, stage, is_moe, modules).values()) for is_moe in kinds}
    backward = {is_moe: max(_moments(training, sharding, is_moe)) for is_moe in kinds}
    return Layers(sharding, whole, kept if modules else whole, backward)


def layer_kept(
    training: Training, stage: Stage, is_moe: bool, recompute: tuple[str, ...] = ()
) -> Mapping[str, float]:
    """Return the bytes that each module of one layer keeps for one micro-batch."""
    model = training.model
    is_like_te = training.fused_softmax or training.numerics.compute == "float32"
    if training.implementation == "transformer_engine" or (training.implementation == "local" and is_like_te):
        # Local layers keep the same, unless they compute the softmax of half-precision scores in float.
        return te_layer.layer_parts(model, sharding_of(training, stage.mesh), is_moe, recompute)
    kind = layer_kind(training, is_moe, stage, recompute)
    parts = kept_parts(kind, layer_sizes(training, stage))
    own = own_norm_parts(model, sharding_of(training, stage.mesh))
    return {**{part.module: part.nbytes for part in parts}, **dict(own)}


def _moments(training: Training, sharding: Sharding, is_moe: bool) -> Iterator[float]:
    """Yield the bytes that several moments of a layer's backward pass need beside what the layer keeps."""
    model = training.model
    width, tokens = sharding.width, sharding.tokens
    # The gradient of the layer's output, also that of the sum that goes around the MLP.
    stream = sharding.own_tokens * model.hidden * width
    gathered = tokens * model.hidden * width if sharding.sequence_parallel else 0
    up = 2 if model.gated else 1
    # Weight gradients are tensors of their own unless their product adds to the buffer of gradients.
    weights = 0.0 if training.fused_gradients else up * model.hidden * width
    if is_moe:
        tokens, inner = sharding.routed * model.topk, model.expert_ffn / sharding.expert_tp
        weights *= inner * model.experts / sharding.ep
        # Gradients of the experts' outputs before and after they are sorted.
        yield stream + 2 * tokens * model.hidden * width
        gathered = 0.0
    else:
        inner = model.ffn / sharding.tp
        weights *= inner
    product, hidden = tokens * inner * width, tokens * model.hidden * width
    # What the second product of the MLP takes is kept, or computed again (gated, in `torch`); its gradient.
    again = product if training.implementation == "torch" and model.gated else 0.0
    yield stream + gathered + again + product
    # The gradient of what the activation took; what the second product took is gone.
    yield stream + again + up * product
    # Then, the gradients of the first product's weights and input; what the activation took is gone too.
    yield stream + gathered + again + hidden - product + weights
    if sharding.stores_scores:
        # Gradients of attention's weights, before and after dropout; the scores' replace them.
        pairs = sharding.tokens * sharding.sequence * model.heads / sharding.tp
        yield stream + (2 if model.attention_dropout else 1) * pairs * width
