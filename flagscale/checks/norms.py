"""Rules for the norms that only the `torch` layers have: of a layer's results, and across heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.checks.latent import MLA
from flagscale.checks.own_layers import own_layer_violations
from flagscale.errors import Violation

POSITION, ACROSS_HEADS = NORMS = ("norm_position", "qk_layernorm_across_heads")
"""Our arguments (by dest): where a layer has norms; whether all heads of queries, or of keys, share one."""
PRE, POST, BOTH = POSITIONS = ("pre", "post", "both")
"""Before attention and MLP, as in the engine; after them, before their results are added; or both."""

_NOT_ACROSS_HEADS = {
    "qk_layernorm": "which normalizes each head by itself",
    "qk_l2_norm": "which normalizes each head by itself",
    MLA: "whose heads share latents with norms of their own",
    "attention_output_gate": "whose gates are joined with the queries",
}


def norm_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield why the norms that the engine does not have cannot be computed."""
    position = values.get(POSITION) or PRE
    wanted = {POSITION: f"{POSITION}: {position}"} if position != PRE else {}
    wanted |= {ACROSS_HEADS: f"{ACROSS_HEADS}: true"} if values.get(ACROSS_HEADS) else {}
    for name, key in wanted.items():
        yield from own_layer_violations(values, name, key)
    if position == POST:
        yield from _post_violations(values)
    if values.get(ACROSS_HEADS):
        yield from _across_heads_violations(values)


def _post_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    what = f"`{POSITION}: {POST}`"
    if values.get("fp32_residual_connection"):
        how = "without a norm, attention and MLP cannot read sums in fp32; remove one"
        yield POSITION, f"{what} cannot be combined with `fp32_residual_connection`: {how}"
    if "layernorm" in (values.get("recompute_modules") or ()):
        how = "no layer keeps the output of such a norm; remove `layernorm`"
        yield "recompute_modules", f"`recompute_modules: layernorm` has no effect with {what}: {how}"


def _across_heads_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    for name, how in _NOT_ACROSS_HEADS.items():
        if values.get(name):
            yield ACROSS_HEADS, f"`{ACROSS_HEADS}` cannot be combined with `{name}`, {how}; remove one"
    if (kind := values.get("normalization")) != "RMSNorm":
        yield ACROSS_HEADS, f"`{ACROSS_HEADS}` needs `normalization: RMSNorm`, not {kind}"
    tp, groups = values.get("tensor_model_parallel_size"), values.get("num_query_groups")
    if not values.get("group_query_attention") or not isinstance(tp, int) or not isinstance(groups, int):
        return
    if 0 < groups < tp:
        what = f"num_query_groups {groups} must be at least tensor_model_parallel_size {tp}"
        yield "num_query_groups", f"{what} with `{ACROSS_HEADS}`: every rank needs keys of its own"
