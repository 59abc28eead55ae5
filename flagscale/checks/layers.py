"""Rules for CPU, `local` layers and `torch` layers, where Megatron ignores arguments or computes wrongly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.checks.degrees import multiple
from flagscale.checks.gemma import ATTENTION_CAP
from flagscale.checks.latent import MLA
from flagscale.errors import Violation

NEEDS_CHIP = {
    "fp8": "fp8_format",
    "fp4": "fp4_format",
    "tp_comm_overlap": "tp_comm_overlap",
    "nccl_ub": "use_nccl_ub",
    "use_torch_fsdp2": "use_torch_fsdp2",
    "use_megatron_fsdp": "use_megatron_fsdp",
}
"""Arguments (by dest) that are not supported on CPU, and their keys."""


def cpu_violations(values: Mapping[str, Any], backend: str) -> Iterator[Violation]:
    """Yield the arguments (by dest) of a worker on CPU that only a chip supports.

    `backend`: the collective backend for host memory.
    """
    for name, key in NEEDS_CHIP.items():
        if values.get(name):
            yield name, f"`{key}` is not supported on CPU; remove it"
    for name, supported in (("distributed_backend", (backend,)), ("transformer_impl", ("torch", "local"))):
        if values[name] not in supported:
            what = f"`{name}: {values[name]}` is not supported on CPU"
            yield name, f"{what}; use `{supported[0]}`, or remove the key"
    if values.get("async_save") and values["async_strategy"] != "mcore":
        what = f"`async_strategy: {values['async_strategy']}` is not supported on CPU"
        yield "async_strategy", f"{what}; use `mcore`, or remove the key"
    if values.get("cuda_graph_impl") not in (None, "none"):
        what = f"`cuda_graph_impl: {values['cuda_graph_impl']}` is not supported on CPU; remove it"
        yield "cuda_graph_impl", what
    if values.get("num_experts") and values.get("moe_token_dispatcher_type") == "flex":
        what = "`moe_token_dispatcher_type: flex` is not supported on CPU; use `alltoall`, or remove the key"
        yield "moe_token_dispatcher_type", what


def local_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield the arguments (by dest) that Megatron's `local` layers need TransformerEngine for."""
    asked = {
        "sequence_parallel": values.get("sequence_parallel") and values["tensor_model_parallel_size"] > 1,
        "moe_grouped_gemm": values.get("moe_grouped_gemm"),
        "fp32_residual_connection": values.get("fp32_residual_connection"),
    }
    for name, is_asked in asked.items():
        if is_asked:
            what = f"`{name}` is not supported with `transformer_impl: local` without TransformerEngine"
            yield name, f"{what}; use `transformer_impl: torch`"


TORCH_IGNORES = {
    "qk_clip": None,
    "log_max_attention_logit": None,
    "mla_down_proj_fusion": None,
    "moe_latent_size": None,
    "delay_wgrad_compute": None,
    "heterogeneous_layers_config_path": None,
    "experimental_attention_variant": None,
    "fp8": None,
    "fp4": None,
    "tp_comm_overlap": None,
    "attention_backend": "auto",
}
"""Arguments (by dest) that only other layers support, and the value that has no effect (None: not set)."""


def torch_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield the arguments (by dest) that the `torch` layers would ignore, or fail with."""
    with_torch = "not supported with `transformer_impl: torch`"
    for name, neutral in TORCH_IGNORES.items():
        value = values.get(name)
        if value and value != neutral:
            yield name, f"`{NEEDS_CHIP.get(name, name)}` is {with_torch}; remove it"
    if values.get("moe_grouped_gemm") and values.get("add_bias_linear"):
        what = f"`moe_grouped_gemm` with biases is {with_torch}: set `disable_bias_linear: true`"
        yield "moe_grouped_gemm", what
    if "moe_act" in (values.get("recompute_modules") or ()):
        yield "recompute_modules", f"`recompute_modules: moe_act` is {with_torch}; remove it"
    yield from _rank_violations(values)
    if not values.get("init_by_rank"):
        for name in ("use_cpu_initialization", "init_model_with_meta_device"):
            if values.get(name):
                what = f"`{name}` draws initial weights per rank: add `init_by_rank: true` if you want that"
                yield name, what


def _rank_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield sizes of latents that tensor parallel ranks cannot share: each of them projects a part."""
    tp, rank, rotary = (
        values.get(name) for name in ("tensor_model_parallel_size", "kv_lora_rank", "qk_pos_emb_head_dim")
    )
    if not values.get(MLA) or not isinstance(tp, int) or tp < 2:
        return
    why = f"tensor_model_parallel_size {tp}"
    yield from multiple(values, "q_lora_rank", tp, why)
    if isinstance(rank, int) and isinstance(rotary, int) and (rank + rotary) % tp:
        what = f"kv_lora_rank {rank} + qk_pos_emb_head_dim {rotary} must be a multiple of {tp} ({why})"
        yield "kv_lora_rank", what


def biased_expert_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield that the engine's own experts cannot have biases (see `BiasedExperts` of our layers)."""
    if values.get("num_experts") and values.get("add_bias_linear") and values["transformer_impl"] == "local":
        what = "experts with biases are not supported with `transformer_impl: local`"
        yield "add_bias_linear", f"{what}; use `torch`, or set `disable_bias_linear: true`"


def sink_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield what the sinks of attention (`softmax_type`) cannot be combined with."""
    kind, layers = values.get("softmax_type") or "vanilla", values["transformer_impl"]
    if kind == "vanilla" or layers == "transformer_engine":
        return
    if layers == "local" and kind == "learnable":
        # The engine (0.19.2) does not cut this parameter by heads, and loses it if weights are drawn by name.
        what = "`softmax_type: learnable` is not supported with `transformer_impl: local`"
        yield "softmax_type", f"{what}; use `transformer_impl: torch`"
    if layers == "local":
        return
    if kind != "learnable":
        what = f"`softmax_type: {kind}` is not supported with `transformer_impl: torch`"
        yield "softmax_type", f"{what}; use `vanilla` or `learnable`"
        return
    with_sinks = "is not supported with `softmax_type: learnable`"
    if values["context_parallel_size"] > 1:
        yield "context_parallel_size", f"`context_parallel_size` {with_sinks}; remove it"
    if values.get(MLA):
        yield MLA, f"`{MLA}` {with_sinks}; remove one of them"
    if values.get("attention_dropout"):
        yield "attention_dropout", f"`attention_dropout` {with_sinks}; set it to 0"
    if values.get(ATTENTION_CAP):
        yield ATTENTION_CAP, f"`{ATTENTION_CAP}` {with_sinks}; remove one of them"
