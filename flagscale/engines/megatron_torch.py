"""What the portable layers (`transformer_impl: torch`, see `megatron/flagscale/layers`) do not do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.parallel.finding import Finding

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


def torch_findings(values: Mapping[str, Any]) -> Iterator[Finding]:
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
