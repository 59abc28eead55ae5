"""Rules of `moe_router_group_best`: by how many of their experts groups are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.errors import Violation

BEST = "moe_router_group_best"
"""The argument (by dest)."""


def group_routing_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield why the number of scores by which groups are compared has no effect, or is impossible."""
    best = values.get(BEST)
    if best is None:
        return
    needed = ("num_experts", "moe_router_num_groups", "moe_router_group_topk")
    if missing := next((name for name in needed if not values.get(name)), None):
        yield BEST, f"`{BEST}` has no effect without `{missing}`"
    elif values.get("moe_router_fusion"):
        yield BEST, f"`{BEST}` is ignored with `moe_router_fusion`; remove one"
    elif (groups := values["moe_router_num_groups"]) > 0:
        size = values["num_experts"] // groups
        if not 0 < best <= size:
            yield BEST, f"{BEST} {best} must be from 1 to {size}, the experts of a group"
