"""Rotary position embeddings that keep nothing per layer: all layers share one cosine and one sine."""

from __future__ import annotations

import functools
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from megatron.flagscale.patching import Patch

_computed: MutableMapping[torch.Tensor, dict[Any, tuple[torch.Tensor, torch.Tensor]]] = WeakIdKeyDictionary()


def cos_sin(
    angles: torch.Tensor, dtype: torch.dtype, scale: float = 1.0, interleaved: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `scale` times the cosine and sine of each pair's angle; the same tensors if they are the same.

    Megatron caches the angles of a sequence length, and passes them to all layers. They are `[..., n]`: both
    elements of a pair have the same. The result is `[..., n / 2]`.
    """
    known = _computed.setdefault(angles, {})
    # Tensors of an inference have no version, and no gradients could be computed with such a cosine.
    key = 0 if angles.is_inference() else angles._version, dtype, scale, interleaved
    if key not in known:
        with torch.inference_mode(False):
            once, _ = _pairs(angles, interleaved)
            known[key] = tuple((wave(once) * scale).to(dtype) for wave in (torch.cos, torch.sin))
    return known[key]


def rotate(
    heads: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool = False,
    *,
    latent: bool = False,
    start: int = 0,
) -> torch.Tensor:
    """Return `heads [s, ..., d]` with `n` elements, from `start`, rotated in pairs; the others do not change.

    `cos` and `sin [s, ..., n / 2]` are those of the pairs' angles. The elements of a pair are `n / 2` apart,
    or neighbours if `interleaved`. In latent attention, neighbours come out `n / 2` apart.
    """
    return _Rotate.apply(heads, cos, sin, start, interleaved or latent, interleaved)


class _Rotate(torch.autograd.Function):
    """`before` and `after`: whether the elements of a pair are neighbours in the heads, and in the result."""

    @staticmethod
    def forward(
        ctx: Any,
        heads: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        start: int,
        before: bool,
        after: bool,
    ) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.settings = start, before, after
        return _turned(heads, cos, sin, start, before, after)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        start, before, after = ctx.settings
        return _turned(grads[0], cos, -sin, start, after, before), None, None, None, None, None


def _turned(
    heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, start: int, before: bool, after: bool
) -> torch.Tensor:
    end = start + 2 * cos.size(-1)
    out = torch.empty_like(heads, memory_format=torch.contiguous_format)
    for same in (slice(start), slice(end, None)):
        out[..., same] = heads[..., same]
    (x, y), (out_x, out_y) = _pairs(heads[..., start:end], before), _pairs(out[..., start:end], after)
    torch.mul(x, cos, out=out_x).addcmul_(y, sin, value=-1)
    torch.mul(y, cos, out=out_y).addcmul_(x, sin)
    return out


def _pairs(tensor: torch.Tensor, neighbours: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first and the second elements of all pairs, as views."""
    if neighbours:
        return tensor[..., ::2], tensor[..., 1::2]
    first, second = tensor.tensor_split(2, -1)
    return first, second


def _rotary(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(original)
    def apply_rotary(
        t: torch.Tensor,
        freqs: torch.Tensor,
        rotary_interleaved: bool = False,
        mla_rotary_interleaved: bool = False,
        mscale: float = 1.0,
        multi_latent_attention: bool | None = None,
    ) -> torch.Tensor:
        if multi_latent_attention is not None:
            mla_rotary_interleaved = multi_latent_attention
        if mla_rotary_interleaved and rotary_interleaved:  # neighbours of what the first has taken apart
            return original(t, freqs, True, True, mscale)
        cos, sin = cos_sin(freqs, t.dtype, mscale, rotary_interleaved)
        return rotate(t, cos, sin, rotary_interleaved, latent=mla_rotary_interleaved)

    return apply_rotary


PATCHES = (
    Patch(
        "megatron.core.models.common.embeddings.rope_utils:_apply_rotary_pos_emb_bshd",
        _rotary,
        "It computes cosine and sine again in each layer, twice, and autograd keeps all of them.",
        "worker",
        until="the engine's rotary embeddings take computed cosines and sines in training",
    ),
)
