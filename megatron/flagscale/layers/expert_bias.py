"""The expert bias of routers without an auxiliary loss: what it is computed from stays exact."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from megatron.flagscale.patching import Patch


def _with_exact_counts(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def maintain(self: Any) -> None:
        original(self)
        if self.local_tokens_per_expert is not None:
            self.local_tokens_per_expert.data = self.local_tokens_per_expert.data.float()

    return maintain


PATCHES = (
    Patch(
        "megatron.core.transformer.moe.router:TopKRouter._maintain_float32_expert_bias",
        _with_exact_counts,
        "With bf16 or fp16, it counts the tokens of each expert in that precision, which is exact only up to "
        "256 or 2048: the bias of an expert then moves in the wrong direction, differently in every layout.",
        "worker",
        until="the counts stay in fp32 like the bias",
    ),
)
