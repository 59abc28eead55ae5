"""The memory of one micro-batch in one model chunk on a rank: kept, and needed for its passes beside that."""

from __future__ import annotations

from collections.abc import Mapping

from flagscale.checks.hetero.layout import Stage
from flagscale.checks.recompute import Setting as FullRecompute
from flagscale.frozen import dataclass
from flagscale.planner.memory.loss import Loss, loss_memory
from flagscale.planner.memory.stage_layers import Layers
from flagscale.planner.training import Training

NOTHING = FullRecompute(None, "uniform", 1)


@dataclass(frozen=True)
class LiveMemory:
    """One model chunk with one micro-batch. Figures are bytes on one rank."""

    kept: Mapping[str, float]
    """From the forward until the backward pass, by name."""
    nbytes: float
    """Of all that is kept."""
    forward: float
    """At the end of the forward pass, beside what is kept."""
    backward: float
    """At the worst moment of the backward pass, beside all that is kept at its start."""
    after: float
    """At the end of the backward pass, when nothing of this micro-batch is kept any more."""


def full_recompute(training: Training, stage: Stage, chunk: int, micro_batch: int) -> FullRecompute:
    """Return which whole layers of a chunk are computed again for a micro-batch of a step."""
    recompute = training.recompute
    if recompute.schedule is not None:
        return recompute.schedule.resolve(training.position(stage, chunk), micro_batch)
    return recompute.full or NOTHING


def chunk_memory(
    training: Training, stage: Stage, layers: Layers, number: int, full: FullRecompute
) -> LiveMemory:
    """Return the memory of one chunk of a stage, of which `full` says what is computed again."""
    model, sharding, position = training.model, layers.sharding, training.position(stage, number)
    own = [model.experts_in[layer] for layer in training.chunk_layers(stage, number)]
    kept, again = _layers_kept(model.hidden, layers, own, full)
    if position == 0 and model.dropout:
        kept["embedding"] = sharding.own_tokens * model.hidden
    has_heads = bool(model.prediction_heads) and position == training.heads_position
    if has_heads:
        # The inputs of both norms, their outputs as one tensor, the input and output of the last norm.
        head = layers.kept[model.experts_in[-1]] + 6 * layers.stream * model.hidden
        kept["prediction heads"] = model.prediction_heads * head
    loss = loss_memory(training, stage, sharding) if position == training.last_position else Loss()
    kept |= loss.kept
    # The layers' turn comes before the loss keeps anything, and again when that is gone.
    of_loss = sum(loss.kept.values())
    inside = again + max((layers.backward[is_moe] for is_moe in own), default=0.0)
    dispatch = 0.0
    if own and own[-1]:
        # While experts combine, variables hold four tensors of all tokens: before and after the exchange,
        # there and back (Megatron-core 0.19.2, transformer/moe/moe_layer.py, `custom_forward`).
        tokens = 4 * sharding.routed * model.topk + 2 * sharding.own_tokens
        dispatch = tokens * model.hidden * sharding.width
    # Stages that read data hold the mask during the forward pass (megatron/training/utils/common_utils.py,
    # `get_batch_on_this_tp_rank`), one byte for each pair of tokens, also if attention does not need it.
    reads_data = position in (0, training.last_position) or has_heads
    mask = sharding.tokens * training.sequence if training.loads_mask and reads_data else 0.0
    # The gradients of the embedding's rows form a whole matrix.
    matrix = training.padded_vocabulary / stage.tp * model.hidden * training.numerics.parameter_bytes
    return LiveMemory(
        kept={name: nbytes for name, nbytes in kept.items() if nbytes},
        nbytes=sum(kept.values()),
        forward=max(loss.forward, dispatch - of_loss) + mask,
        backward=max(loss.backward, inside - of_loss),
        after=matrix if position == 0 or has_heads else 0.0,
    )


def _layers_kept(
    hidden: int, layers: Layers, own: list[bool], full: FullRecompute
) -> tuple[dict[str, float], float]:
    """Return what the layers of a chunk keep, by name, and the most that is computed again at one time."""
    kept: dict[str, float] = {}
    again = max((layers.whole[is_moe] - layers.kept[is_moe] for is_moe in own), default=0.0)
    if full.granularity and own:
        # One input is kept for each group of layers; in the backward pass, one group at a time is complete.
        size = full.num_layers if full.method == "uniform" else 1
        count = len(own) if full.method == "uniform" else min(full.num_layers, len(own))
        groups = [own[first : min(first + size, count)] for first in range(0, count, size)]
        kept["inputs of recomputed layers"] = len(groups) * layers.stream * hidden
        again = max((sum(layers.whole[is_moe] for is_moe in group) for group in groups), default=again)
        own = own[count:]
    for is_moe, name in ((False, "dense layers"), (True, "expert layers")):
        if count := own.count(is_moe):
            kept[name] = count * layers.kept[is_moe]
    return kept, again
