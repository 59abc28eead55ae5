"""Rotary position embeddings that keep nothing per layer: all layers share one cosine and one sine."""

from __future__ import annotations

import functools
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from megatron.flagscale.patching import Patch

_computed: MutableMapping[torch.Tensor, dict[Any, tuple[torch.Tensor, torch.Tensor]]] = WeakIdKeyDictionary()


def cos_sin(angles: torch.Tensor, dtype: torch.dtype, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `scale` times the cosine and sine of the angles; the same tensors if they are still the same.

    Megatron caches the angles of a sequence length, and passes them to all layers.
    """
    known = _computed.setdefault(angles, {})
    # Tensors of an inference have no version, and no gradients could be computed with such a cosine.
    key = 0 if angles.is_inference() else angles._version, dtype, scale
    if key not in known:
        with torch.inference_mode(False):
            known[key] = tuple((wave(angles) * scale).to(dtype) for wave in (torch.cos, torch.sin))
    return known[key]


def rotate(
    heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False
) -> torch.Tensor:
    """Return `heads [s, ..., d]` with their first `n` elements rotated in pairs; the others do not change.

    `cos` and `sin [s, ..., n]` are those of the angles. The elements of a pair are `n / 2` apart, or
    neighbours if `interleaved`.
    """
    return _Rotate.apply(heads, cos, sin, interleaved)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
    ) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.pairs = functools.partial(_pairs, cos.size(-1), interleaved)
        (x, y), (cos_x, cos_y), (sin_x, sin_y) = (ctx.pairs(tensor) for tensor in (heads, cos, sin))
        out = _same_rest(heads, cos.size(-1))
        out_x, out_y = ctx.pairs(out)
        torch.mul(x, cos_x, out=out_x).addcmul_(y, sin_x, value=-1)
        torch.mul(y, cos_y, out=out_y).addcmul_(x, sin_y)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        (x, y), (cos_x, cos_y), (sin_x, sin_y) = (ctx.pairs(tensor) for tensor in (grads[0], cos, sin))
        of_heads = _same_rest(grads[0], cos.size(-1))
        of_x, of_y = ctx.pairs(of_heads)
        torch.mul(x, cos_x, out=of_x).addcmul_(y, sin_y)
        torch.mul(y, cos_y, out=of_y).addcmul_(x, sin_x, value=-1)
        return of_heads, None, None, None


def _pairs(rotated: int, interleaved: bool, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first and the second elements of all pairs, as views."""
    if interleaved:
        return tensor[..., 0:rotated:2], tensor[..., 1:rotated:2]
    return tensor[..., : rotated // 2], tensor[..., rotated // 2 : rotated]


def _same_rest(tensor: torch.Tensor, rotated: int) -> torch.Tensor:
    """Return a new tensor, with the elements that are not rotated filled in."""
    made = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    made[..., rotated:] = tensor[..., rotated:]
    return made


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
        if mla_rotary_interleaved:
            rotated = freqs.size(-1)
            t = torch.cat((t[..., 0:rotated:2], t[..., 1:rotated:2], t[..., rotated:]), -1)
        return rotate(t, *cos_sin(freqs, t.dtype, mscale), rotary_interleaved)

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
