"""The engine's own GPT model of one rank on meta tensors, from a job as the planner sees it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from flagscale.checks.hetero.layout import Stage
from flagscale.checks.norms import ACROSS_HEADS, POSITION
from flagscale.planner.training import Training
from flagscale_testing.one_rank import META, creating_on, one_rank

Found = Counter[tuple[str, tuple[int, ...], bool]]
"""Weights by module, shape, and whether gradients are reduced over the copies of an expert."""


def engine_weights(training: Training, stage: Stage, rank: int) -> Found:
    """Return the weights that the engine creates on one rank of a stage; only for a job with one mesh."""
    (mesh,), (block,) = training.layout.meshes, training.blocks
    chunks = len(stage.chunks)
    degrees = {
        "tensor_model_parallel_size": mesh.tp,
        "pipeline_model_parallel_size": mesh.pp,
        "virtual_pipeline_model_parallel_size": chunks if chunks > 1 else None,
        "context_parallel_size": mesh.cp,
        "expert_model_parallel_size": mesh.ep,
        "expert_tensor_parallel_size": block.expert_tp,
    }
    with one_rank(training.layout.world_size, rank, **degrees), creating_on(META), META:
        models = [_model(training, degrees, chunk if chunks > 1 else None) for chunk in range(chunks)]
        from megatron.flagscale.layers.prediction_heads import drop_unused_outputs

        if training.model.prediction_heads:
            drop_unused_outputs(models)
        return Counter(found for model in models for found in _weights(model))


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    for name, weight in model.named_parameters():
        where = re.sub(
            r"^embedding\.|^decoder\.(layers\.\d+\.)?|mtp\.layers\.\d+\.(mtp_model_layer\.)?", "", name
        )
        module = re.sub(r"\.local_experts\.\d+|\.weight$", "", where)
        yield module, tuple(weight.shape), not getattr(weight, "allreduce", True)


def _model(training: Training, degrees: dict[str, Any], chunk: int | None) -> torch.nn.Module:
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig

    from megatron.flagscale.layers.spec import layer_spec

    model = training.model
    config = GPTModelConfig(
        transformer=_transformer(training, degrees),
        transformer_layer_spec=layer_spec if training.implementation == "torch" else None,
        vocab_size=training.padded_vocabulary,
        seq_length=model.learned_positions or training.sequence,
        share_embeddings_and_output_weights=model.tied,
        position_embedding_type="learned_absolute" if model.learned_positions else "rope",
    )
    groups = ProcessGroupCollection.use_mpu_process_groups()
    built: torch.nn.Module = GPTModelBuilder(config).build_model(groups, vp_stage=chunk)
    return built


def _transformer(training: Training, degrees: dict[str, Any]) -> Any:
    from megatron.core.transformer import MLATransformerConfig, TransformerConfig

    model, is_latent = training.model, training.model.attention == "mla"
    settings: dict[str, Any] = {
        **degrees,
        "num_layers": model.layers,
        "hidden_size": model.hidden,
        "num_attention_heads": model.heads,
        "ffn_hidden_size": model.ffn,
        "gated_linear_unit": model.gated,
        "activation_func": torch.nn.functional.silu if model.gated else torch.nn.functional.gelu,
        "normalization": "LayerNorm" if model.norm_bias else "RMSNorm",
        "add_bias_linear": model.linear_bias,
        "add_qkv_bias": model.qkv_bias,
        "qk_layernorm": model.qk_norm,
        "attention_output_gate": model.output_gate,
        "mtp_num_layers": model.prediction_heads or None,
        "mtp_use_repeated_layer": model.repeated_head,
        "sequence_parallel": training.blocks[0].sequence_parallel,
        "pipeline_model_parallel_layout": _layout(training),
        "pipeline_dtype": torch.bfloat16,
        "params_dtype": torch.bfloat16,
        "bf16": True,
        "transformer_impl": "local",
        "perform_initialization": False,
        "gradient_accumulation_fusion": False,
        "bias_activation_fusion": False,
        "persist_layer_norm": False,
    }
    if model.experts:
        settings |= {
            "num_moe_experts": model.experts,
            "moe_router_topk": model.topk,
            "moe_ffn_hidden_size": model.expert_ffn,
            "moe_shared_expert_intermediate_size": model.shared_ffn or None,
            "moe_shared_expert_gate": model.shared_gate,
            "moe_layer_freq": [int(is_moe) for is_moe in model.experts_in],
            "moe_token_dispatcher_type": "alltoall",
        }
    if not is_latent:
        groups = {"num_query_groups": model.groups, "kv_channels": model.head_dim}
        config = TransformerConfig(**settings, **groups)
        # Our arguments, which the engine's configuration does not have.
        setattr(config, ACROSS_HEADS, model.qk_norm_across_heads)
        setattr(config, POSITION, model.norm_position)
        return config
    return MLATransformerConfig(
        **settings,
        multi_latent_attention=True,
        rope_type="rope",
        q_lora_rank=model.q_lora or None,
        kv_lora_rank=model.kv_lora,
        qk_head_dim=model.qk_nope_dim,
        qk_pos_emb_head_dim=model.rope_dim,
        v_head_dim=model.v_dim,
    )


def _layout(training: Training) -> str | None:
    """Return the layout of the pipeline with its prediction heads, as the engine writes it."""
    if training.layout.meshes[0].pp == 1:
        return None
    parts = training.layout.pipeline_layout.removesuffix("L").split("|")
    at = -1 if training.prediction_chunk is None else training.prediction_chunk
    parts[at] += "m" * training.model.prediction_heads
    return "|".join(parts) + "L"
