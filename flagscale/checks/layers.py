"""What Megatron cannot do, or does wrong, on host processors (gloo, no TransformerEngine)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from flagscale.errors import Violation

_NEEDS_CUDA = {
    "fp8": "FP8 arithmetic",
    "fp4": "FP4 arithmetic",
    "tp_comm_overlap": "overlapped tensor-parallel communication",
    "nccl_ub": "NCCL's buffers",
}


def layers_on_cpu(values: Mapping[str, Any], given: Collection[str]) -> str:
    """Return the `transformer_impl` that the worker takes on host processors."""
    return str(values["transformer_impl"]) if "transformer_impl" in given else "torch"


def cpu_violations(values: Mapping[str, Any], given: Collection[str], backend: str) -> Iterator[Violation]:
    """Yield what the arguments (by dest) ask for and host processors do not have.

    `given`: what the user wrote; `backend`: the collective backend of the platform.
    """
    for name, what in _NEEDS_CUDA.items():
        if values.get(name):
            yield name, f"{what} needs a GPU; leave it out on the platform cpu"
    if "distributed_backend" in given and values["distributed_backend"] != backend:
        what = f"{values['distributed_backend']} needs GPUs; the platform cpu uses {backend}"
        yield "distributed_backend", what
    layers = layers_on_cpu(values, given)
    if layers not in ("torch", "local"):
        yield "transformer_impl", f"`{layers}` needs a GPU; on the platform cpu use `torch`, or leave it out"
    if values.get("async_save") and "async_strategy" in given and values["async_strategy"] != "mcore":
        yield "async_strategy", f"`{values['async_strategy']}` needs a GPU; leave `async_strategy` out"
    if values.get("async_save") and values.get("ckpt_format") != "torch_dist":
        yield "async_save", "asynchronous saving needs `ckpt_format: torch_dist`"
    if values.get("cuda_graph_impl") not in (None, "none"):
        yield "cuda_graph_impl", "CUDA graphs need a GPU"
    if layers == "local":
        needs = "is not done by Megatron's local layers; use `transformer_impl: torch`"
        if values.get("sequence_parallel") and values.get("tensor_model_parallel_size") != 1:
            yield "sequence_parallel", f"sequence parallelism {needs}"
        if values.get("context_parallel_size") != 1:
            yield "context_parallel_size", f"context parallelism {needs}"
        if values.get("moe_grouped_gemm"):
            yield "moe_grouped_gemm", f"the grouped product of experts {needs}"
    if values.get("num_experts") and values.get("add_bias_linear"):
        what = "experts with biases are computed wrong on the platform cpu: set `disable_bias_linear: true`"
        yield "add_bias_linear", what


_NOT_DONE = {
    "qk_clip": None,
    "log_max_attention_logit": None,
    "multi_latent_attention": None,
    "heterogeneous_layers_config_path": None,
    "experimental_attention_variant": None,
    "fp8": None,
    "fp4": None,
    "tp_comm_overlap": None,
    "attention_backend": "auto",
    "softmax_type": "vanilla",
}
"""Arguments (by dest) that only other layers read, and the value that asks for nothing (None: not set)."""

_CONTEXT = ("p2p", "all_gather")


def torch_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield what the arguments (by dest) ask of the portable layers in vain."""
    for name, neutral in _NOT_DONE.items():
        value = values.get(name)
        if value and value != neutral:
            yield name, "does not go with transformer_impl torch; leave it out"
    kinds = values.get("cp_comm_type") or []
    if values.get("context_parallel_size") != 1 and set(kinds) - {*_CONTEXT}:
        yield "cp_comm_type", f"transformer_impl torch knows cp_comm_type {' and '.join(_CONTEXT)}"
    if values.get("moe_grouped_gemm") and values.get("add_bias_linear"):
        what = "`moe_grouped_gemm` takes experts without biases: set `disable_bias_linear: true`"
        yield "moe_grouped_gemm", what
    if "moe_act" in (values.get("recompute_modules") or []):
        yield "recompute_modules", "`moe_act` does not go with transformer_impl torch; leave it out"
    if not values.get("init_by_rank"):
        for name in ("use_cpu_initialization", "init_model_with_meta_device"):
            if values.get(name):
                yield name, f"`{name}` draws weights by rank: add `init_by_rank: true` if that is wanted"
