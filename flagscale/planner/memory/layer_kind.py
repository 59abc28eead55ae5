"""The layers of a job as the table of kept bytes names them: their kind, and the sizes of their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flagscale.checks.hetero.layout import Stage
from flagscale.planner.memory.layer_memory import LayerKind
from flagscale.planner.training import Training


def layer_kind(training: Training, is_moe: bool, stage: Stage, recompute: tuple[str, ...] = ()) -> LayerKind:
    """Return the kind of a stage's dense layers or of those with experts."""
    model, compute = training.model, training.numerics.compute
    return LayerKind(
        training.implementation,
        model.attention,
        "dense" if not is_moe else "moe_shared" if model.shared_ffn else "moe",
        training.blocks[stage.mesh].sequence_parallel,
        # Multiplications in fp8 and fp4 are TransformerEngine's.
        "bfloat16" if compute in ("fp8", "fp4") else compute,
        recompute,
        tuple(_options(training, stage)),
    )


def layer_sizes(training: Training, stage: Stage) -> Mapping[str, int | None]:
    """Return the sizes and degrees of a stage's layers, by the engine's arguments; None: it has none."""
    model, block = training.model, training.blocks[stage.mesh]
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
        "exchange_parallel_size": training.exchange_ranks or stage.cp,
        "expert_tensor_parallel_size": block.expert_tp,
    }
    return {name: size or None for name, size in sizes.items()}


def _options(training: Training, stage: Stage) -> Iterator[str]:
    """Yield the options of all layers of a job, with the kernels of devices: their attention drops weights
    without keeping more, unless `local` layers compute it."""
    model = training.model
    if model.norm_bias:
        yield "layer_norm"
    if model.dropout:
        yield "dropout"
    if model.attention_dropout and training.implementation == "local":
        yield "attention_dropout"
    if model.attention != "mla":
        if model.qk_norm:
            yield "qk_norm"
        if not model.rotates:
            yield "unrotated"
    if stage.cp > 1 and training.exchange.startswith("a2a"):
        yield "a2a"
    if not model.gated:
        yield "ungated"
    if model.experts:
        yield from model.router
        # In float32, products of groups are computed one by one.
        if training.grouped_experts and training.numerics.compute != "float32":
            yield "grouped"
        if model.shared_ffn and model.shared_gate:
            yield "shared_gate"
