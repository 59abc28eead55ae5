"""Soft caps of attention scores and of output logits: x becomes cap * tanh(x / cap), as in Gemma-2.

Fused kernels for attention have no cap (torch 2.13). Here, scores are computed in plain operations, for one
sample and one group of heads at a time, and again in the backward pass. So the layer keeps what it keeps with
a fused kernel: queries, keys, values, the output and a log-sum-exp per query. Meanwhile it needs a few
matrices of `heads of a group * queries * keys` in float.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

Visible = Callable[[], torch.Tensor | None]
"""Returns which keys each query attends to, `[sq, sk]` or `[b, 1, sq, sk]`; None if all of them."""


def soft_cap(values: torch.Tensor, cap: float) -> torch.Tensor:
    """Return `cap * tanh(values / cap)`; one tensor of the same size is kept for the backward pass."""
    return torch.tanh(values / cap) * cap


def cap_logits(cap: float, chunks: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """Cap the logits of Megatron's language models; passed to the engine as a pre-wrap hook."""
    for chunk in chunks:
        # The engine passes them through this method before the loss, whatever the part of the vocabulary.
        chunk._scale_logits = functools.partial(soft_cap, cap=cap)
    return chunks


def capped_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: Visible, scale: float, cap: float
) -> torch.Tensor:
    """Return the attention `[b, heads, sq, dv]` of queries `[b, heads, sq, d]` with capped scores.

    Keys are `[b, groups, sk, d]` and values `[b, groups, sk, dv]`. `visible` is called in both passes, so
    that no mask is kept in between.
    """
    return _Capped.apply(q, k, v, visible, scale, cap)


class _Capped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        visible: Visible,
        scale: float,
        cap: float,
    ) -> torch.Tensor:
        b, heads, length, _ = q.shape
        # In memory as Megatron's form of the result, `[sq, b, heads * dv]`.
        out = q.new_empty(length, b, heads, v.size(-1)).permute(1, 2, 0, 3)
        lse = q.new_empty(b, heads, length, dtype=_precise(q))
        hidden = _hidden(visible())
        for sample, own, group in _parts(q, k):
            scores = _scores(q[sample, own], k[sample, group], scale, cap)
            if hidden is not None:
                scores.masked_fill_(hidden[sample % len(hidden)], -torch.inf)
            lse[sample, own] = scores.logsumexp(-1)
            probabilities = torch.exp(scores - lse[sample, own, :, None])
            out[sample, own] = (probabilities @ v[sample, group].to(scores.dtype)).to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.settings = visible, scale, cap
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        visible, scale, cap = ctx.settings
        total = lse.dtype
        dq, dk, dv = (torch.zeros_like(tensor, dtype=total) for tensor in (q, k, v))
        hidden = _hidden(visible())
        for sample, own, group in _parts(q, k):
            queries, keys = q[sample, own].to(total), k[sample, group].to(total)
            grad, result = grads[0][sample, own].to(total), out[sample, own].to(total)
            scores = _scores(queries, keys, scale, cap)
            slope = 1 - (scores / cap).square_()
            if hidden is not None:
                scores.masked_fill_(hidden[sample % len(hidden)], -torch.inf)
            p = torch.exp(scores - lse[sample, own, :, None])
            d_p = grad @ v[sample, group].to(total).transpose(-1, -2)
            d_scores = p * (d_p - (grad * result).sum(-1, keepdim=True)) * slope * scale
            dq[sample, own] = d_scores @ keys
            dk[sample, group] = (d_scores.transpose(-1, -2) @ queries).sum(0)
            dv[sample, group] = (p.transpose(-1, -2) @ grad).sum(0)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _parts(q: torch.Tensor, k: torch.Tensor) -> Iterator[tuple[int, slice, int]]:
    """Yield each sample, with the heads of each group and the group's number."""
    per_group = q.size(1) // k.size(1)
    for sample in range(q.size(0)):
        for group in range(k.size(1)):
            yield sample, slice(group * per_group, (group + 1) * per_group), group


def _scores(queries: torch.Tensor, keys: torch.Tensor, scale: float, cap: float) -> torch.Tensor:
    """Return the capped scores `[heads, sq, sk]` of `queries [heads, sq, d]` and `keys [sk, d]` in float."""
    total = _precise(queries)
    scores = (queries.to(total) @ keys.to(total).t()).mul_(scale / cap)
    return scores.tanh_().mul_(cap)


def _hidden(seen: torch.Tensor | None) -> torch.Tensor | None:
    """Return what the queries of each sample do not attend to, `[b or 1, sq, sk]`."""
    return None if seen is None else ~seen.reshape(-1, *seen.shape[-2:])


def _precise(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
