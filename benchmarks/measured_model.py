"""The engine's arguments (by dest) for the model and the degrees of a measured row."""

from __future__ import annotations

from typing import Any

from benchmarks.measured_fields import MOST_PARTS, Assumed, Fields, Unusable
from flagscale.checks.pipeline import layout_parts

_LEARNED_POSITIONS = ("gpt", "opt", "mpt")
"""Families with an embedding of positions, biases and dropout, as in Megatron's first versions."""

_SAILOR: dict[str, dict[str, Any]] = {
    "opt": {"hidden_dropout": 0.0, "attention_dropout": 0.0, "untie_embeddings_and_output_weights": True},
    "gpt": {"hidden_dropout": 0.1, "attention_dropout": 0.0},
}
"""What Sailor's own models do, by family (its Megatron-DeepSpeed, megatron/model/opt_model.py: the dropout is
commented out, the output has weights of its own; gpt_neo_model.py: attention has no dropout)."""


_VTRAIN_TOKENS = 50257
"""vTrain's own model has as many and does not pad them (src/model/gpt_model.py, gpt_modeling.py: each rank
has 50257 // tp rows). The rows do not say it."""


def model_arguments(row: Fields, assumed: Assumed) -> dict[str, Any]:
    """Return the shape of the model."""
    model = row.at("model")
    if model.values.get("gated") is None:
        assumed.add("an MLP without a gate")
    if model.values.get("tied") is None and row.at("source").text("key") not in _OWN_MODELS:
        assumed.add("one matrix for embedding and output")
    family = model.text("family").partition("-")[0]
    if "hybrid" in model.text("family"):
        raise Unusable("a hybrid model (state-space and attention layers)")
    hidden, heads = model.whole("hidden"), model.whole("heads")
    groups = model.whole("kv_heads", heads)
    layers = model.whole("layers", most=MOST_PARTS)
    experts = model.whole("experts", 0, least=0, most=MOST_PARTS)
    is_first_kind = family in _LEARNED_POSITIONS and "oss" not in model.text("family")
    values: dict[str, Any] = {
        "num_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "group_query_attention": groups != heads,
        "num_query_groups": groups,
        "kv_channels": model.whole("head_dim", max(1, hidden // heads)),
        "ffn_hidden_size": model.whole("ffn", model.whole("moe_ffn", 4 * hidden)),
        "vocab_size": model.whole("vocab"),
        "swiglu": model.truth("gated"),
        "normalization": "RMSNorm" if model.text("norm").startswith("rms") else "LayerNorm",
        "untie_embeddings_and_output_weights": model.values.get("tied") is False,
        "add_bias_linear": is_first_kind or model.truth("bias"),
        "add_qkv_bias": model.truth("qkv_bias"),
        "qk_layernorm": model.truth("qk_norm"),
        "position_embedding_type": "learned_absolute" if is_first_kind else "rope",
        "mtp_num_layers": model.whole("mtp", 0, least=0, most=MOST_PARTS) or None,
        "hidden_dropout": 0.1 if is_first_kind else 0.0,
        "attention_dropout": 0.1 if is_first_kind else 0.0,
    }
    if model.text("attention").lower() == "mla":
        values |= {
            "multi_latent_attention": True,
            # All published models have norms of their latents; SimuMax's script passes it too
            # (simu_tools/megatron_scripts/scripts/run_pretrain_deepseekv2.sh).
            "qk_layernorm": model.values.get("qk_norm") is not False,
            "q_lora_rank": model.whole("q_lora", 0, least=0) or None,
            "kv_lora_rank": model.whole("kv_lora"),
            "qk_head_dim": model.whole("qk_head_dim"),
            "qk_pos_emb_head_dim": model.whole("rope_head_dim"),
            "v_head_dim": model.whole("v_head_dim"),
        }
    if experts:
        dense = model.whole("dense_layers", 0, least=0)
        values |= {
            "num_experts": experts,
            "moe_router_topk": model.whole("topk"),
            "moe_ffn_hidden_size": model.whole("moe_ffn", model.whole("ffn", 4 * hidden)),
            "moe_shared_expert_intermediate_size": model.whole("shared_ffn", 0, least=0) or None,
            "moe_layer_freq": f"[0]*{dense}+[1]*{max(0, layers - dense)}",
            "moe_grouped_gemm": True,
            "moe_token_dispatcher_type": "alltoall",
        }
    source = row.at("source").text("key")
    if source == "sailor":
        values |= _SAILOR.get(family, {})
    if source == "vtrain":
        tp = row.at("parallel").whole("tp")
        values |= {"vocab_size": _VTRAIN_TOKENS, "padded_vocab_size": _VTRAIN_TOKENS // tp * tp}
    return values


def degree_arguments(row: Fields) -> dict[str, Any]:
    """Return the degrees, and how the layers are cut into stages."""
    parallel, model = row.at("parallel"), row.at("model")
    if parallel.values.get("fsdp") or row.at("flags").values.get("fsdp"):
        raise Unusable("sharded data parallel (FSDP)")
    tp, pp = parallel.whole("tp"), parallel.whole("pp", most=MOST_PARTS)
    vpp = parallel.whole("vpp", 1, most=MOST_PARTS)
    values: dict[str, Any] = {
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "context_parallel_size": parallel.whole("cp", 1),
        "expert_model_parallel_size": parallel.whole("ep", 1),
        "expert_tensor_parallel_size": parallel.whole("etp", 1) if model.values.get("experts") else None,
        "sequence_parallel": parallel.truth("sp") and tp > 1,
        "seq_length": row.at("train").whole("seq"),
        "max_position_embeddings": row.at("train").whole("seq"),
    }
    written = recipe(row).text("model.pipeline_model_parallel_layout")
    layers, heads = model.whole("layers"), model.whole("mtp", 0, least=0, most=MOST_PARTS)
    parts = pp * vpp
    if written:
        values["pipeline_model_parallel_layout"] = _with_ends(written, heads)
    elif parts > layers + 2:
        raise Unusable(f"{layers} layers for {parts} parts of the pipeline")
    elif layers % parts == 0:
        values["num_virtual_stages_per_pipeline_rank"] = vpp if vpp > 1 else None
    elif (layers + 2) % parts == 0:
        values["num_virtual_stages_per_pipeline_rank"] = vpp if vpp > 1 else None
        values["account_for_embedding_in_pipeline_split"] = True
        values["account_for_loss_in_pipeline_split"] = True
    else:
        larger = layers % parts
        sizes = [layers // parts + (part < larger) for part in range(parts)]
        values["pipeline_model_parallel_layout"] = (
            "E" + "|".join("t" * size for size in sizes) + "m" * heads + "L"
        )
    return values


def _with_ends(layout: str, heads: int) -> str:
    """Return a layout with its prediction heads, if it leaves them out."""
    parts = layout_parts(layout)
    missing = heads - "".join(parts).count("m")
    return "|".join([*parts[:-1], parts[-1].replace("L", "m" * max(0, missing) + "L")])


def recipe(row: Fields) -> Fields:
    """Return what the recipe of Megatron-Bridge that belongs to the row assigns."""
    return row.at("flags").at("recipe").at("assigned")


_OWN_MODELS = ("sailor",)
"""Sources of which the program was read instead."""

_NO_DECODERS = {
    **dict.fromkeys(("t5", "bert", "retro", "vit", "clip"), "a model with an encoder"),
    **dict.fromkeys(("multimodal", "llava", "mimo"), "a model with an encoder of images"),
    **dict.fromkeys(("mamba", "mamba2", "ssm"), "a state-space model"),
}
_ATTENTION = ("", "mha", "mqa", "gqa", "mla")


def refuse_kind(row: Fields) -> None:
    """Raise if the model is of a kind that the planner does not know."""
    model = row.at("model")
    family, attention = model.text("family").lower(), model.text("attention").lower()
    if kind := _NO_DECODERS.get(family.partition("-")[0]):
        raise Unusable(f"{kind}: {family}")
    if attention not in _ATTENTION:
        raise Unusable(f"attention of a kind that the planner does not know: {attention}")
