"""Rules for the norms that only the `torch` layers have: those of a layer's results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.errors import Violation

POSITION = "norm_position"
"""Our argument (by dest) for where a layer has norms."""
PRE, POST, BOTH = POSITIONS = ("pre", "post", "both")
"""Before attention and MLP, as in the engine; after them, before their results are added; or both."""


def norm_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield why norms at another position than the engine's cannot be computed."""
    position = values.get(POSITION) or PRE
    if position == PRE:
        return
    what = f"`{POSITION}: {position}`"
    if values.get("transformer_impl") != "torch":
        how = f"needs `transformer_impl: torch`, not {values.get('transformer_impl')}"
        yield POSITION, f"{what} {how}: other layers have norms only before attention and MLP"
    if values.get("spec"):
        yield POSITION, f"{what} has no effect with `spec`, which defines the layers; remove one"
    if position == POST:
        if values.get("fp32_residual_connection"):
            how = "without a norm, attention and MLP cannot read sums in fp32; remove one"
            yield POSITION, f"{what} cannot be combined with `fp32_residual_connection`: {how}"
        if "layernorm" in (values.get("recompute_modules") or ()):
            how = "no layer keeps the output of such a norm; remove `layernorm`"
            yield "recompute_modules", f"`recompute_modules: layernorm` has no effect with {what}: {how}"
