"""Attention kernels that also return the log-sum-exp of each query, and take it as input for the gradients.

With it, attention over several blocks of keys can be combined from attention over each block, forward and
backward, for context parallelism. Queries are `[batch, heads, queries, width]`, keys are
`[batch, groups, keys, width]`, and values may be of another width. `heads` is a multiple of `groups`;
`causal` needs as many queries as keys.
"""

from __future__ import annotations

from typing import Any

import torch

from megatron.flagscale.chips import chip


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return softmax(scale q k^T) v, `[batch, heads, queries, width of v]`, and the log-sum-exp
    `[batch, heads, queries]`."""
    kernels = chip().attention
    if not kernels or not kernels.takes((wide := kernels.padded(q, k, v))[0]):
        return plain_attend(q, k, v, causal, scale)
    out, lse = kernels.attend(*wide, causal, scale)
    return out[..., : v.size(-1)], lse


def attend_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of `q`, `k` and `v` through this block of keys.

    `grad`, `out` and `lse` are those of the attention over *all* blocks, for these queries.
    """
    kernels = chip().attention
    if not kernels or not kernels.takes((wide := kernels.padded(q, k, v, grad, out))[0]):
        return plain_attend_backward(grad, q, k, v, out, lse, causal, scale)
    *wide, wide_grad, wide_out = wide
    d_q, d_k, d_v = kernels.backward(wide_grad, *wide, wide_out, lse, causal, scale)
    return d_q[..., : q.size(-1)], d_k[..., : k.size(-1)], d_v[..., : v.size(-1)]


def stored_by_query(out: torch.Tensor) -> torch.Tensor:
    """Return a result of `attend` in a storage `[queries, batch, heads, width]` of its own size.

    The next layer reads it so: it would otherwise keep a copy, in addition to what attention keeps.
    """
    return out.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Return causal attention, `[batch, heads, queries, width of v]`, on the kernels of `attend`.

    Unlike torch's own `scaled_dot_product_attention`, it creates no score matrix if the widths differ, and
    keeps the values without padding.
    """
    return _Causal.apply(q, k, v, scale)


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        out, lse = attend(q, k, v, True, scale)
        out = stored_by_query(out)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        return (*attend_backward(grads[0], q, k, v, out, lse, True, ctx.scale), None)


def plain_attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool,
    scale: float,
    hidden: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `attend` in plain operations: for devices without a kernel, and as their reference in tests.

    Keys that are `hidden`, `[queries, keys]` or `[batch, queries, keys]`, are left out.
    """
    scores = _scores(q, k, causal, scale, hidden)
    lse = scores.logsumexp(-1)
    probabilities = torch.exp(scores - lse[..., None])
    return (probabilities @ v.float()[:, :, None]).flatten(1, 2).to(q.dtype), lse.flatten(1, 2)


def plain_attend_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    causal: bool,
    scale: float,
    hidden: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute `attend_backward` in plain operations, without keys that are `hidden`."""
    groups = k.size(1)
    grad, out, queries = (_by_group(tensor.float(), groups) for tensor in (grad, out, q))
    keys, values = k.float()[:, :, None], v.float()[:, :, None]
    p = torch.exp(_scores(q, k, causal, scale, hidden) - lse.unflatten(1, (groups, -1))[..., None])
    d_p = grad @ values.transpose(-1, -2)
    d_scores = p * (d_p - (grad * out).sum(-1, keepdim=True)) * scale
    d_k = (d_scores.transpose(-1, -2) @ queries).sum(2)
    d_v = (p.transpose(-1, -2) @ grad).sum(2)
    return (d_scores @ keys).flatten(1, 2).to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype)


def _by_group(tensor: torch.Tensor, groups: int) -> torch.Tensor:
    """Return a tensor `[b, heads, s, d]` as `[b, groups, heads of a group, s, d]`."""
    return tensor.unflatten(1, (groups, -1))


def _scores(
    q: torch.Tensor, k: torch.Tensor, causal: bool, scale: float, hidden: torch.Tensor | None
) -> torch.Tensor:
    scores = _by_group(q.float(), k.size(1)) @ k.float()[:, :, None].transpose(-1, -2) * scale
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    if hidden is not None:  # the same for all heads
        scores = scores.masked_fill(hidden[..., None, None, :, :], -torch.inf)
    return scores
