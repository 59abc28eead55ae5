"""Self-attention around the core of attention.py: rotary positions of windows, and what is recomputed."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer import attention

from megatron.flagscale.layers.storage import compact
from megatron.flagscale.layers.window_rotary import window_angles, window_base


class SelfAttention(attention.SelfAttention):
    """Megatron's layer; with `window_rotary_base`, its rotary positions have that base if it has a window.

    If it recomputes its core attention, that keeps no more than the core's inputs.
    """

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, *rest: Any, **named: Any
    ) -> Any:
        base, angles = window_base(self.config, self.layer_number), named.get("rotary_pos_emb")
        if base is not None and angles is not None:
            named["rotary_pos_emb"] = window_angles(angles, base, self.config, self.pg_collection.cp)
        return super().forward(hidden_states, attention_mask, *rest, **named)

    def _checkpointed_attention_forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **named: Any
    ) -> torch.Tensor:
        tensors = compact(query, key, value)
        out: torch.Tensor = super()._checkpointed_attention_forward(*tensors, *rest, **named)
        return out
