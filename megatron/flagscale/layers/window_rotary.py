"""Rotary positions of layers with a window, where these have a base of their own (Gemma-3).

The engine computes the angles of all layers at once. A layer with a window replaces them here.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.transformer.utils import is_layer_window_attention

from flagscale.checks.gemma import WINDOW_BASE


def window_base(config: Any, layer_number: int) -> float | None:
    """Return the base of a layer's rotary positions if it has one of its own, else None."""
    base: float | None = getattr(config, WINDOW_BASE, None)
    is_window = is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number)
    return base if is_window else None


def window_angles(
    angles: torch.Tensor, base: float, config: Any, group: dist.ProcessGroup | None
) -> torch.Tensor:
    """Return the angles of the same positions for another base, `[s, 1, 1, d]` like `angles`.

    All layers get the same tensor. `group` holds the ranks that the sequence is split over.
    """
    rotary = _rotary(angles.size(-1), config.rotary_interleaved, base, config.use_cpu_initialization, group)
    found: torch.Tensor = rotary(angles.size(0) * (group.size() if group else 1))
    return found


@functools.cache
def _rotary(
    width: int, interleaved: bool, base: float, on_host: bool, group: dist.ProcessGroup | None
) -> RotaryEmbedding:
    return RotaryEmbedding(
        width, 1.0, interleaved, rotary_base=base, use_cpu_initialization=on_host, cp_group=group
    )
