"""Attention kernels that also return, and take back, the log of the softmax denominator of each query.

With it, attention over a few blocks of keys can be put together from attention over each block, forward and
backward: what context parallel needs. Everywhere: queries `[batch, heads, queries, width]`, keys and values
`[batch, groups, keys, width]`, `heads` a multiple of `groups`; `causal` only with as many queries as keys.
"""

from __future__ import annotations

import torch

from megatron.flagscale.chips import chip


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return softmax(scale q k^T) v, shaped like `q`, and log lse `[batch, heads, queries]`."""
    kernels = chip().attention
    if kernels and kernels.takes(q):
        return kernels.attend(q, k, v, causal, scale)
    return plain_attend(q, k, v, causal, scale)


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
    """Return the gradients of `q`, `k`, `v` that come through this block of keys.

    `grad`, `out` and `lse` are those of the attention over *all* blocks, for these queries.
    """
    kernels = chip().attention
    if kernels and kernels.takes(q):
        return kernels.backward(grad, q, k, v, out, lse, causal, scale)
    return plain_attend_backward(grad, q, k, v, out, lse, causal, scale)


def plain_attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `attend`, in plain operations: for devices without a kernel, and to check the kernels against."""
    scores = _scores(q, k, causal, scale)
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `attend_backward`, in plain operations."""
    groups = k.size(1)
    grad, out, queries = (_by_group(tensor.float(), groups) for tensor in (grad, out, q))
    keys, values = k.float()[:, :, None], v.float()[:, :, None]
    p = torch.exp(_scores(q, k, causal, scale) - lse.unflatten(1, (groups, -1))[..., None])
    d_p = grad @ values.transpose(-1, -2)
    d_scores = p * (d_p - (grad * out).sum(-1, keepdim=True)) * scale
    d_k = (d_scores.transpose(-1, -2) @ queries).sum(2)
    d_v = (p.transpose(-1, -2) @ grad).sum(2)
    return (d_scores @ keys).flatten(1, 2).to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype)


def _by_group(tensor: torch.Tensor, groups: int) -> torch.Tensor:
    """Turn `[b, heads, s, d]` into `[b, groups, heads of a group, s, d]`."""
    return tensor.unflatten(1, (groups, -1))


def _scores(q: torch.Tensor, k: torch.Tensor, causal: bool, scale: float) -> torch.Tensor:
    scores = _by_group(q.float(), k.size(1)) @ k.float()[:, :, None].transpose(-1, -2) * scale
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores
