"""Rules for `cp_comm_type`, by which layers exchange a sequence that is split over context parallel ranks.

The engine reads it without checking it, and each rank would fail after the start (Megatron-core 0.19.2:
`training/arguments.py`, `core/transformer/transformer_config.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from flagscale.errors import Violation

A2A, NESTED = "a2a", "a2a+p2p"
"""The types that exchange heads: all ranks do, or groups of ranks between which the keys travel."""
TYPES = ("p2p", "all_gather", A2A, NESTED)
SIZES = "hierarchical_context_parallel_sizes"


def context_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield the rules that context parallelism and its types (by dest) break in the layers of a job."""
    types, cp = values.get("cp_comm_type") or (), values["context_parallel_size"]
    if values["transformer_impl"] == "local":
        if cp > 1:
            what = "`context_parallel_size` is not supported with `transformer_impl: local`"
            yield "context_parallel_size", f"{what}; use `transformer_impl: torch`"
        return
    if unknown := sorted({*types} - {*TYPES}):
        yield "cp_comm_type", f"no such `cp_comm_type`: {', '.join(unknown)}; valid: {', '.join(TYPES)}"
    layers = values.get("num_layers")
    if cp > 1 and len(types) > 1 and isinstance(layers, int) and len(types) != layers:
        what = f"`cp_comm_type` has {len(types)} types for num_layers {layers}"
        yield "cp_comm_type", f"{what}: give one for all layers, or one for each"
    sizes: Sequence[int] = values.get(SIZES) or ()
    if sizes and NESTED not in types:
        yield SIZES, f"`{SIZES}` is only read with `cp_comm_type: {NESTED}`: remove it, or use that type"
    elif NESTED in types and (len(sizes) != 2 or min(sizes) < 1 or prod(sizes) != cp):
        what = f"`cp_comm_type: {NESTED}` needs `{SIZES}`, two numbers whose product is context_parallel_size"
        given = f", not {' x '.join(map(str, sizes))}" if sizes else ""
        yield SIZES, f"{what} {cp}{given}: how many ranks exchange heads, and how many such groups there are"
    elif cp > 1:
        if A2A in types:
            yield from _head_violations(values, A2A, cp, "context_parallel_size")
        if NESTED in types:
            yield from _head_violations(values, NESTED, sizes[0], f"the first of `{SIZES}`")


def _head_violations(values: Mapping[str, Any], type: str, ranks: int, given: str) -> Iterator[Violation]:
    """Yield if `ranks` ranks cannot share the heads of each of them evenly."""
    heads, tp = values.get("num_attention_heads"), values["tensor_model_parallel_size"]
    if not isinstance(heads, int) or tp < 1 or heads % tp:
        return  # reported by other rules
    need = f"must be a multiple of {ranks} ({given})"
    if heads // tp % ranks:
        own = f"the attention heads of each rank, {heads // tp} (num_attention_heads {heads} / tensor {tp}),"
        yield "cp_comm_type", f"with `{type}`, {own} {need}: use p2p, or other degrees"
    elif values["transformer_impl"] == "transformer_engine" and values.get("group_query_attention"):
        groups = max(int(values["num_query_groups"] or heads) // tp, 1)
        if groups % ranks and not values.get("multi_latent_attention"):
            own = f"the groups of keys of each rank, {groups} (num_query_groups / tensor {tp}),"
            what = f"with `{type}` and TransformerEngine, {own} {need}"
            yield "cp_comm_type", f"{what}: use `transformer_impl: torch`, p2p, or other degrees"
