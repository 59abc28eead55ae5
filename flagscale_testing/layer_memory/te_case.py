"""A case's layer in TransformerEngine, by the planner's formula: it cannot be measured without CUDA."""

from __future__ import annotations

from collections.abc import Mapping

from flagscale.planner.memory.te_layer import layer_parts
from flagscale.planner.model_shape import ModelShape
from flagscale.planner.sharding import Sharding
from flagscale_testing.layer_memory.cases import Case


def te_parts(case: Case) -> Mapping[str, float]:
    """Return the bytes that each module keeps; of the options of a case, none is taken."""
    return layer_parts(*planned(case), "num_experts" in case.sizes, case.recompute)


def planned(case: Case) -> tuple[ModelShape, Sharding]:
    """Return a case's layer as the planner describes it, without the options of the case."""
    sizes, is_moe = case.sizes, "num_experts" in case.sizes
    is_latent, heads = "kv_lora_rank" in sizes, sizes["num_attention_heads"]
    model = ModelShape(
        hidden=sizes["hidden_size"],
        heads=heads,
        groups=sizes.get("num_query_groups", heads),
        head_dim=sizes.get("kv_channels", 0),
        ffn=sizes.get("ffn_hidden_size", 0),
        vocabulary=0,
        experts_in=(is_moe,),
        attention="mla" if is_latent else "gqa",
        q_lora=sizes.get("q_lora_rank", 0),
        kv_lora=sizes.get("kv_lora_rank", 0),
        qk_nope_dim=sizes.get("qk_head_dim", 0),
        rope_dim=sizes.get("qk_pos_emb_head_dim", 0),
        v_dim=sizes.get("v_head_dim", 0),
        experts=sizes.get("num_experts", 0),
        topk=sizes.get("moe_router_topk", 0),
        expert_ffn=sizes.get("moe_ffn_hidden_size", 0),
        shared_ffn=sizes.get("moe_shared_expert_intermediate_size", 0),
        gated=True,
        qk_norm=is_latent,
    )
    tp = case.degree("tensor_model")
    sharding = Sharding(
        sequence=sizes["seq_length"],
        micro_batch=sizes["micro_batch_size"],
        tp=tp,
        ep=case.degree("expert_model"),
        expert_tp=sizes.get("expert_tensor_parallel_size", tp),
        cp=case.degree("context"),
        sequence_parallel=case.sequence_parallel,
        width=4 if case.dtype == "float32" else 2,
    )
    return model, sharding
