"""Read a job of training from the arguments of the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import batched
from math import lcm
from typing import Any

from flagscale.checks.degrees import degrees
from flagscale.checks.hetero.layout import HeteroLayout, Mesh
from flagscale.checks.pipeline import layout_parts
from flagscale.checks.recompute import (
    Setting,
    chunk_layers,
    has_recompute_schedule,
    recompute_schedule,
)
from flagscale.checks.schedule import last_batch
from flagscale.errors import Problem, UserError
from flagscale.planner.chips import Chip
from flagscale.planner.model_shape import shape_of
from flagscale.planner.training import Block, Numerics, Recompute, Training

UNKNOWN: Mapping[str, str] = {
    "hybrid_layer_pattern": "hybrid models (state-space and attention layers)",
    "hybrid_override_pattern": "hybrid models (state-space and attention layers)",
    "is_hybrid_model": "hybrid models (state-space and attention layers)",
    "heterogeneous_layers_config_path": "models whose layers have unequal sizes",
    "heterogeneous_layers_config_encoded_json": "models whose layers have unequal sizes",
    "experimental_attention_variant": "experimental kinds of attention",
    "moe_latent_size": "experts in a latent space",
    "use_megatron_fsdp": "sharded data parallel (FSDP)",
    "fine_grained_activation_offloading": "activations that are moved to the host",
    "cpu_offloading_num_layers": "activations that are moved to the host",
    "use_torch_fsdp2": "sharded data parallel (FSDP)",
}
"""By dest: what the planner has no model of."""


def training_of(
    values: Mapping[str, Any],
    world_size: int,
    chips: Sequence[Chip],
    per_node: Sequence[int],
    vocabulary: int | None = None,
) -> Training:
    """Return the job that checked arguments (by dest, defaults included) describe.

    Args:
        values: of all ranks; the meshes are in `hetero_layout`, if there are any.
        world_size: ranks.
        chips: one for each mesh.
        per_node: ranks per host, one for each mesh.
        vocabulary: tokens of the tokenizer, if known; `padded_vocab_size` needs none.

    Raises:
        UserError: with everything that the planner does not know.
    """
    tokens = vocabulary or values.get("padded_vocab_size") or values.get("vocab_size")
    problems = [*_unknown(values)]
    if not tokens:
        what = "the number of tokens is not known here, because only the engine can read this tokenizer"
        problems.append(Problem(what, "padded_vocab_size", "set `padded_vocab_size` to the model's number"))
    if problems:
        raise UserError(problems)
    layout = layout_of(values, world_size)
    blocks = tuple(
        _block(values, layout, mesh, chip, ranks)
        for mesh, (chip, ranks) in enumerate(zip(chips, per_node, strict=True))
    )
    return Training(
        model=shape_of(values, int(tokens or 0)),
        layout=layout,
        blocks=blocks,
        sequence=int(values["seq_length"]),
        batch=last_batch(values) or blocks[0].micro_batch * layout.meshes[0].dp,
        padded_vocabulary=int(
            values.get("padded_vocab_size") or padded_vocabulary(values, layout, int(tokens or 0))
        ),
        numerics=numerics_of(values),
        implementation=str(values.get("transformer_impl") or "transformer_engine"),
        recompute=_recompute(values),
        prediction_chunk=_prediction_chunk(values),
        capacity=values.get("moe_expert_capacity_factor"),
        overlap_gradients=bool(values.get("overlap_grad_reduce")),
        overlap_parameters=bool(values.get("overlap_param_gather")),
        overlap_tensor=bool(values.get("tp_comm_overlap")),
        overlap_experts=bool(values.get("overlap_moe_expert_parallel_comm")),
        captured=_captured(values),
        overlap_pipeline=bool(values.get("overlap_p2p_comm", True)),
        group=int(values.get("microbatch_group_size_per_vp_stage") or 0),
        deterministic=bool(values.get("deterministic_mode")),
        fused_gradients=bool(values.get("gradient_accumulation_fusion", True)),
        fused_loss=bool(values.get("cross_entropy_loss_fusion")),
        loss_in_place=bool(values.get("cross_entropy_loss_fusion"))
        and values.get("cross_entropy_fusion_impl") == "te",
        fused_activation=bool(
            values.get("bias_swiglu_fusion" if values.get("swiglu") else "bias_gelu_fusion")
        ),
        grouped_experts=bool(values.get("moe_grouped_gemm")),
        fused_softmax=bool(values.get("masked_softmax_fusion", True)),
        stores_scores=str(values.get("attention_backend")).rsplit(".")[-1] in ("unfused", "local"),
        loads_mask=bool(values.get("create_attention_mask_in_dataloader", True))
        and not values.get("dataloader_inter_document_masking"),
        exchange=_exchange(values.get("cp_comm_type")),
        exchange_ranks=int((values.get("hierarchical_context_parallel_sizes") or [0])[0]),
    )


def layout_of(values: Mapping[str, Any], world_size: int) -> HeteroLayout:
    """Return the layout of checked arguments; an ordinary job has one mesh."""
    if isinstance(text := values.get("hetero_layout"), str):
        return HeteroLayout.from_json(text)
    found = degrees(values, world_size)
    written = values.get("pipeline_model_parallel_layout")
    if isinstance(written, str):
        chunks = [part.count("t") for part in layout_parts(written)]
    else:
        chunks = list(chunk_layers(values, found.pp, found.vpp) or ())
    by_chunk = list(batched(chunks, found.pp))
    stages = tuple(tuple(chunk[stage] for chunk in by_chunk) for stage in range(found.pp))
    return HeteroLayout((Mesh(found.tp, found.cp, found.ep, found.dp, found.pp, stages),))


def numerics_of(values: Mapping[str, Any]) -> Numerics:
    """Return the precisions of checked arguments (megatron/training/arguments.py, 0.19.2)."""
    is_half = bool(values.get("bf16") or values.get("fp16"))
    compute = "bfloat16" if values.get("bf16") else "float16" if values.get("fp16") else "float32"
    if narrow := "fp4" if values.get("fp4") else "fp8" if values.get("fp8") else "":
        compute = narrow
    is_aware = bool(values.get("use_precision_aware_optimizer"))
    return Numerics(
        compute=compute,
        parameter_bytes=2 if is_half else 4,
        gradient_bytes=_gradient_bytes(values, is_half, is_aware),
        state_bytes=_state_bytes(values, is_half, is_aware),
        distributed=bool(values.get("use_distributed_optimizer")),
        instances=int(values.get("num_distributed_optimizer_instances") or 1),
    )


_WIDTHS = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}


def _gradient_bytes(values: Mapping[str, Any], is_half: bool, is_aware: bool) -> int:
    if not is_half:
        return 4
    if values.get("fp16"):
        return 4 if values.get("accumulate_allreduce_grads_in_fp32") else 2
    if values.get("grad_reduce_in_bf16"):
        return 2
    return _WIDTHS[values.get("main_grads_dtype") or "fp32"] if is_aware else 4


def _state_bytes(values: Mapping[str, Any], is_half: bool, is_aware: bool) -> float:
    """Return the bytes of the optimizer's states that are on the device."""
    moments = [_WIDTHS[(values.get(name) if is_aware else None) or "fp32"] for name in _MOMENTS]
    match values.get("optimizer"):
        case "sgd":
            moments = moments[:1] if values.get("sgd_momentum", 0.9) else []
        case "lion" | "muon" | "dist_muon" | "adaptive_muon":
            moments = moments[:1]
    master = 4 if is_half else 0
    if master and is_aware:
        # The half that a bf16 parameter lacks of its float32 copy, or a copy in float16.
        master = 2 if values.get("bf16") or values.get("main_params_dtype") == "fp16" else 4
    offloaded = 0.0
    if values.get("optimizer_cpu_offload"):
        offloaded = float(values.get("optimizer_offload_fraction") or 1.0)
    return (master + sum(moments)) * (1 - offloaded)


_MOMENTS = ("exp_avg_dtype", "exp_avg_sq_dtype")


def _unknown(values: Mapping[str, Any]) -> Iterator[Problem]:
    found = {what: dest for dest, what in UNKNOWN.items() if values.get(dest)}
    for what, dest in found.items():
        yield Problem(f"the planner has no model of {what}", dest)
    if values.get("softmax_type") not in (None, "vanilla"):
        yield Problem("the planner has no model of attention with sinks", "softmax_type")


def _block(values: Mapping[str, Any], layout: HeteroLayout, number: int, chip: Chip, ranks: int) -> Block:
    mesh, micro = layout.meshes[number], int(values["micro_batch_size"])
    is_cut = values.get("sequence_parallel") if mesh.sp is None else mesh.sp
    return Block(
        chip=chip,
        micro_batch=layout.micro_batch_size(number, micro),
        expert_tp=int(values.get("expert_tensor_parallel_size") or mesh.tp),
        sequence_parallel=bool(is_cut) and mesh.tp > 1,
        per_node=ranks,
    )


def padded_vocabulary(values: Mapping[str, Any], layout: HeteroLayout, tokens: int) -> int:
    """Return the rows of the embedding (megatron/core/tokenizers/utils/build_tokenizer.py, 0.19.2)."""
    divisor = int(values.get("make_vocab_size_divisible_by") or 128)
    multiple = divisor * lcm(*(mesh.tp for mesh in layout.meshes))
    return -(-tokens // multiple) * multiple


def _captured(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what CUDA graphs capture (megatron/core/transformer/transformer_config.py, 0.19.2)."""
    # Its predecessors choose an implementation where none is chosen.
    is_old = bool(values.get("enable_cuda_graph") or values.get("external_cuda_graph"))
    match values.get("cuda_graph_impl"):
        case None | "none" if not is_old:
            return ()
        case "full_iteration":
            return ("full_iteration",)
    given = values.get("cuda_graph_scope_deprecated") or values.get("cuda_graph_modules") or "full"
    names = [given] if isinstance(given, str) else [str(getattr(one, "name", one)) for one in given]
    return tuple(names) if names != ["full"] else ("attn", "mlp", "moe")


def _exchange(given: Any) -> str:
    """Return how context parallel ranks exchange keys, from one value or a list with one for each layer."""
    first = given[0] if isinstance(given, list | tuple) and given else given
    return str(first or "p2p")


def _recompute(values: Mapping[str, Any]) -> Recompute:
    if values.get("recompute_activations") or values.get("recompute_granularity") == "selective":
        return Recompute(modules=tuple(values.get("recompute_modules") or ("core_attn",)))
    if values.get("recompute_granularity") != "full":
        return Recompute()
    method, layers = values.get("recompute_method") or "uniform", values.get("recompute_num_layers") or 1
    schedule = recompute_schedule(values) if has_recompute_schedule(values) else None
    return Recompute(full=Setting("full", method, int(layers)), schedule=schedule)


def _prediction_chunk(values: Mapping[str, Any]) -> int | None:
    written = values.get("pipeline_model_parallel_layout")
    if not isinstance(written, str):
        return None
    return next((number for number, part in enumerate(layout_parts(written)) if "m" in part), None)
