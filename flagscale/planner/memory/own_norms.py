"""The bytes that norms which the engine does not have keep for the backward pass: they are in `torch` layers.

A norm keeps its input, and one number in float32 per token (LayerNorm: two). With norms after attention and
MLP only (`norm_position: post`), a layer keeps as much as with norms before them: instead of what a norm
returns, the next product keeps the layer's input.
"""

from __future__ import annotations

from collections.abc import Iterator

from flagscale.checks.norms import BOTH
from flagscale.planner.model_shape import ModelShape
from flagscale.planner.sharding import Sharding


def own_norm_parts(model: ModelShape, sharding: Sharding) -> Iterator[tuple[str, float]]:
    """Yield the modules of one layer that keep more than with the engine's norms, and the bytes on a rank."""
    if model.norm_position == BOTH:
        per_token = model.hidden * sharding.width + (8 if model.norm_bias else 4)
        yield "post_attention_norm", sharding.own_tokens * per_token
        yield "post_mlp_norm", sharding.own_tokens * per_token
    if model.qk_norm_across_heads:
        for name, heads in (("query_norm", model.heads), ("key_norm", model.groups)):
            own = heads * model.head_dim / sharding.tp
            yield f"self_attention.{name}", sharding.tokens * (own * sharding.width + 4)
