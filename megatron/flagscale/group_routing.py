"""Group-limited routing whose groups are compared by any number of their experts, as DeepSeek-V2 needs it."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from megatron.flagscale.patching import Patch

if TYPE_CHECKING:
    import torch


def add_routing_args(group: argparse._ArgumentGroup) -> None:
    """Add the argument by which groups of experts are compared."""
    group.add_argument(
        "--moe-router-group-best",
        type=int,
        metavar="N",
        help="With --moe-router-group-topk: choose the groups by the sum of their N best scores "
        "(DeepSeek-V2: 1, DeepSeek-V3: 2). By default, N is --moe-router-topk / --moe-router-group-topk.",
    )


def group_limited(
    scores: torch.Tensor, topk: int, groups: int, chosen: int, best: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `topk` highest scores `[tokens, topk]` within the chosen groups, and their experts.

    `scores` are `[tokens, experts]`. For each token, the `chosen` groups are those with the largest sums of
    their `best` scores.
    """
    import torch

    grouped = scores.unflatten(1, (groups, -1))
    winners = grouped.topk(best, -1).values.sum(-1).topk(chosen, -1, sorted=False).indices
    is_chosen = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter_(1, winners, True)
    allowed = grouped.masked_fill(~is_chosen.unsqueeze(-1), float("-inf")).flatten(1)
    values, experts = allowed.topk(topk, -1)
    return values, experts


def _by_best(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def group_limited_topk(
        scores: torch.Tensor, topk: int, num_tokens: int, num_experts: int, num_groups: int, group_topk: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        from megatron.training.global_vars import get_args

        best = get_args().moe_router_group_best
        if best is None:
            found: tuple[torch.Tensor, torch.Tensor] = original(
                scores, topk, num_tokens, num_experts, num_groups, group_topk
            )
            return found
        return group_limited(scores, topk, num_groups, group_topk, best)

    return group_limited_topk


PATCHES = (
    Patch(
        "megatron.core.transformer.moe.moe_utils:group_limited_topk",
        _by_best,
        "It compares groups by the sum of their topk / group_topk best scores. DeepSeek-V2 chooses 6 experts "
        "from 3 groups, but compares groups by the best score alone.",
        "worker",
        until="the engine has an argument for the number of scores",
    ),
)
