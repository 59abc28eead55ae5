"""What one micro-batch in one model chunk keeps on a rank, and what its passes need beside that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flagscale.checks.hetero.layout import Stage
from flagscale.checks.recompute import Setting as FullRecompute
from flagscale.frozen import dataclass
from flagscale.planner import te_layer
from flagscale.planner.layer_memory import LayerKind, kept_parts
from flagscale.planner.loss_memory import Loss, loss_memory
from flagscale.planner.training import Training

NOTHING = FullRecompute(None, "uniform", 1)


@dataclass(frozen=True)
class Chunk:
    """One model chunk with one micro-batch. Figures are bytes on one rank."""

    kept: Mapping[str, float]
    """From the forward until the backward pass, by name."""
    forward: float
    """At the end of the forward pass, beside what is kept."""
    backward: float
    """At the worst moment of the backward pass, beside all that is kept at its start."""
    after: float
    """At the end of the backward pass, when nothing of this micro-batch is kept any more."""

    @property
    def nbytes(self) -> float:
        return sum(self.kept.values())


def full_recompute(training: Training, stage: Stage, chunk: int, micro_batch: int) -> FullRecompute:
    """Return which whole layers of a chunk are computed again for a micro-batch of a step."""
    recompute = training.recompute
    if recompute.schedule is not None:
        return recompute.schedule.resolve(chunk * len(training.layout.stages) + stage.index, micro_batch)
    return recompute.full or NOTHING


def chunk_memory(training: Training, stage: Stage, number: int, full: FullRecompute) -> Chunk:
    """Return the memory of one chunk of a stage, of which `full` says what is computed again."""
    model, stages = training.model, training.layout.stages
    setting = layer_setting(training, stage)
    width, stream = setting.width, setting.rows * model.hidden * setting.width
    layers = [model.experts_in[layer] for layer in training.chunk_layers(stage, number)]
    whole = {is_moe: sum(layer_kept(training, stage, is_moe).values()) for is_moe in {*layers}}
    kept: dict[str, float] = {}
    again = 0.0
    if full.granularity and layers:
        # One input is kept for each group of layers; in the backward pass one group at a time is complete.
        size = full.num_layers if full.method == "uniform" else 1
        count = len(layers) if full.method == "uniform" else min(full.num_layers, len(layers))
        groups = [layers[first : min(first + size, count)] for first in range(0, count, size)]
        kept["inputs of recomputed layers"] = len(groups) * stream
        again = max((sum(whole[is_moe] for is_moe in group) for group in groups), default=0.0)
        layers = layers[count:]
    for is_moe, name in ((False, "dense layers"), (True, "expert layers")):
        if is_moe in layers:
            parts = layer_kept(training, stage, is_moe, training.recompute.modules)
            kept[name] = layers.count(is_moe) * sum(parts.values())
            again = max(again, whole[is_moe] - sum(parts.values()))
    inside = again + max(
        (layer_backward(training, stage, is_moe) for is_moe in whole),
        default=0.0,
    )
    position = number * len(stages) + stage.index
    embedding = training.padded_vocabulary * model.hidden / stage.tp * training.numerics.parameter_bytes
    if position == 0 and model.dropout:
        kept["embedding"] = setting.rows * model.hidden
    loss = (
        loss_memory(training, stage, setting) if position == len(stages) * len(stage.chunks) - 1 else Loss()
    )
    heads = prediction_heads(training, stage, position)
    kept |= heads
    kept |= loss.kept
    ahead = sum(loss.kept.values())
    # While experts combine, the function's variables hold four tensors of all tokens: before and after the
    # exchange, there and back (megatron/core/transformer/moe/moe_layer.py, `custom_forward`).
    dispatch = 0.0
    if layers and layers[-1]:
        dispatch = (4 * setting.routed * model.topk + 2 * setting.rows) * model.hidden * width - ahead
    return Chunk(
        kept={name: nbytes for name, nbytes in kept.items() if nbytes},
        forward=max(loss.forward, dispatch),
        # The layers' turn comes when what the loss kept is gone.
        backward=max(loss.backward, inside - ahead),
        # The gradients of the embedding's rows form a whole matrix.
        after=embedding if position == 0 or heads else width * 0.0,
    )


def prediction_heads(training: Training, stage: Stage, position: int) -> dict[str, float]:
    """Return what the prediction heads keep, if this chunk has them, without their losses."""
    model = training.model
    last = len(training.layout.stages) * len(stage.chunks) - 1
    if not model.prediction_heads or position != (
        last if training.prediction_chunk is None else training.prediction_chunk
    ):
        return {}
    setting = layer_setting(training, stage)
    layer = sum(layer_kept(training, stage, model.experts_in[-1], training.recompute.modules).values())
    # The inputs of both norms, their outputs as one tensor, the input and output of the last norm.
    norms = 6 * setting.rows * model.hidden * setting.width
    return {"prediction heads": model.prediction_heads * (layer + norms)}


def layer_setting(training: Training, stage: Stage) -> te_layer.Setting:
    """Return what decides the sizes of tensors of a stage's layers."""
    block, compute = training.blocks[stage.mesh], training.numerics.compute
    width = 4 if compute == "float32" else 2
    return te_layer.Setting(
        tokens=training.sequence * block.micro_batch / stage.cp,
        sequence=training.sequence,
        tp=stage.tp,
        expert_tp=block.expert_tp,
        cp=stage.cp,
        sequence_parallel=block.sequence_parallel,
        width=width,
        narrow=1 if compute in ("fp8", "fp4") else width,
        exchange=training.exchange,
        stores_scores=training.stores_scores,
        fused_activation=training.fused_activation,
        capacity=training.capacity or 1.0,
    )


def layer_kept(
    training: Training, stage: Stage, is_moe: bool, recompute: tuple[str, ...] = ()
) -> Mapping[str, float]:
    """Return the bytes that each module of one layer keeps for one micro-batch."""
    model = training.model
    if training.implementation == "transformer_engine":
        return te_layer.layer_parts(model, layer_setting(training, stage), is_moe, recompute)
    block = training.blocks[stage.mesh]
    kind = LayerKind(
        training.implementation,
        model.attention,
        "dense" if not is_moe else "moe_shared" if model.shared_ffn else "moe",
        block.sequence_parallel,
        "bfloat16" if training.numerics.compute in ("fp8", "fp4") else training.numerics.compute,
        recompute,
    )
    sizes = {
        "seq_length": training.sequence,
        "micro_batch_size": block.micro_batch,
        "hidden_size": model.hidden,
        "num_attention_heads": model.heads,
        "num_query_groups": model.groups,
        "kv_channels": model.head_dim,
        "ffn_hidden_size": model.ffn,
        "q_lora_rank": model.q_lora,
        "kv_lora_rank": model.kv_lora,
        "qk_head_dim": model.qk_nope_dim,
        "qk_pos_emb_head_dim": model.rope_dim,
        "v_head_dim": model.v_dim,
        "num_experts": model.experts,
        "moe_router_topk": model.topk,
        "moe_ffn_hidden_size": model.expert_ffn,
        "moe_shared_expert_intermediate_size": model.shared_ffn,
        "tensor_model_parallel_size": stage.tp,
        "context_parallel_size": stage.cp,
        "expert_tensor_parallel_size": block.expert_tp,
    }
    parts = kept_parts(kind, {name: size or None for name, size in sizes.items()})
    return {part.module: part.nbytes for part in parts}


def layer_backward(training: Training, stage: Stage, is_moe: bool) -> float:
    """Return what the backward pass of a layer needs at its worst moment, beside what the layer keeps."""
    return max(_moments(training, stage, is_moe))


def _moments(training: Training, stage: Stage, is_moe: bool) -> Iterator[float]:
    model, setting = training.model, layer_setting(training, stage)
    width, tokens = setting.width, setting.tokens
    # The gradient of the layer's output, also that of the sum that goes around the MLP.
    stream = setting.rows * model.hidden * width
    gathered = tokens * model.hidden * width if setting.sequence_parallel else 0
    up = 2 if model.gated else 1
    if is_moe:
        routed = setting.routed * model.topk
        # Gradients of the experts' outputs before and after they are sorted.
        yield stream + 2 * routed * model.hidden * width
        # The gradient of what the activation took; what the second product kept is gone.
        yield stream + up * routed * model.expert_ffn / setting.expert_tp * width
    else:
        inner = tokens * model.ffn / setting.tp * width
        yield stream + gathered + inner
        yield stream + up * inner
    if setting.stores_scores:
        # Gradients of attention's weights, before and after dropout; the scores' replace them.
        pairs = tokens * setting.sequence * model.heads / setting.tp
        yield stream + (2 if model.attention_dropout else 1) * pairs * width
