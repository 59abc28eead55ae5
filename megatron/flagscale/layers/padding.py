"""Padding in a model with experts: it does not count in the balance of experts, in any layout.

The engine's routers get the mask, but two of their computations with it are wrong (megatron-core 0.19.2).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from megatron.flagscale.patching import Patch


def _with_rows(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def count(self: Any, routing_map: Any, padding_mask: Any = None) -> None:
        original(self, routing_map, padding_mask if padding_mask is None else padding_mask[:, None])

    return count


def _with_mean_count(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def count(*positional: Any, reduce_group: Any, with_padding_mask: bool = False, **named: Any) -> Any:
        named |= {"reduce_group": reduce_group, "with_padding_mask": with_padding_mask}
        of_experts, own, total = original(*positional, **named)
        return of_experts, total / reduce_group.size() if with_padding_mask else own, total

    return count


_ROUTER = "megatron.core.transformer.moe.router"
PATCHES = (
    Patch(
        f"{_ROUTER}:TopKRouter._apply_expert_bias",
        _with_rows,
        "It combines a number per token and expert with a padding mask of one per token, which fails.",
        "worker",
        until="the mask gets a second dimension there",
    ),
    Patch(
        f"{_ROUTER}:get_tokens_per_expert_and_token_count",
        _with_mean_count,
        "With padding, it returns the tokens of all ranks that share a sample as those of each rank: the sum "
        "is done in place. Auxiliary losses then count once per rank, and gradients depend on the layout.",
        "worker",
        until="it sums a copy, and ranks with unequal numbers of tokens use their mean",
    ),
)
