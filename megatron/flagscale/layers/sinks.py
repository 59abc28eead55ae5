"""Causal attention with a sink for each head: a learned logit in the softmax that has no value.

The weights of a query's keys then add up to less than one, so a head can attend to nothing (gpt-oss;
`softmax_type: learnable`). The sink acts as one more key whose value is zero: given the log-sum-exp of all
other keys, it only scales the output. Megatron-core 0.19.2 computes the same in `SoftmaxOne`
(`fusions/fused_softmax.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from megatron.flagscale.layers.kernels import (
    attend,
    attend_backward,
    plain_attend,
    plain_attend_backward,
    stored_by_query,
)

_BLOCK = 256
"""Queries of a window or of documents that are computed together."""


def sink_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sinks: torch.Tensor,
    scale: float,
    before: int | None = None,
    starts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return causal attention with sinks `[heads]`, of the shape of `q`: `[b, heads, s, d]`.

    `k` and `v` are `[b, groups, s, d]`. A token attends to itself and to `before` tokens before it (None: to
    all of them) that belong to its document, if the `starts` of documents are given (see `documents.py`).

    Without a window and documents, the kernels of `attend` are used. Otherwise, blocks of queries are
    computed in plain operations; the scores of one block exist at a time.
    """
    return _SinkAttention.apply(q, k, v, sinks, scale, before, starts)


class _SinkAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        sinks: torch.Tensor,
        scale: float,
        before: int | None,
        starts: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.blocks = None if before is None and starts is None else (before, starts)
        ctx.scale = scale
        if ctx.blocks is None:
            out, lse = attend(q, k, v, True, scale)
        else:
            parts = [
                plain_attend(
                    q[:, :, one.queries], k[:, :, one.keys], v[:, :, one.keys], False, scale, one.hidden
                )
                for one in _blocks(q, *ctx.blocks)
            ]
            out, lse = (torch.cat(part, 2) for part in zip(*parts, strict=True))
        total = torch.logaddexp(lse, sinks.float()[:, None])
        out = stored_by_query((out.float() * torch.exp(lse - total)[..., None]).to(q.dtype))
        ctx.save_for_backward(q, k, v, sinks, out, total)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, sinks, out, lse = ctx.saved_tensors
        (grad,) = grads
        if ctx.blocks is None:
            d_q, d_k, d_v = attend_backward(grad, q, k, v, out, lse, True, ctx.scale)
        else:
            d_q, d_k, d_v = _backward_by_block(ctx, grad, q, k, v, out, lse)
        # Of a probability p with value zero: p * (0 - grad * out).
        weights = torch.exp(sinks.float()[:, None] - lse)
        d_sinks = -(weights * (grad.float() * out.float()).sum(-1)).sum((0, 2))
        return d_q, d_k, d_v, d_sinks.to(sinks.dtype), None, None, None


def _backward_by_block(
    ctx: Any,
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    d_q = torch.empty_like(q)
    d_k, d_v = (torch.zeros_like(one, dtype=torch.float32) for one in (k, v))
    for one in _blocks(q, *ctx.blocks):
        rows, columns = one.queries, one.keys
        of_q, of_k, of_v = plain_attend_backward(
            grad[:, :, rows],
            q[:, :, rows],
            k[:, :, columns],
            v[:, :, columns],
            out[:, :, rows],
            lse[:, :, rows],
            False,
            ctx.scale,
            one.hidden,
        )
        d_q[:, :, rows] = of_q
        d_k[:, :, columns] += of_k
        d_v[:, :, columns] += of_v
    return d_q, d_k.to(k.dtype), d_v.to(v.dtype)


class _Block(NamedTuple):
    """Some queries, the keys that at least one of them attends to, and which are hidden from which."""

    queries: slice
    keys: slice
    hidden: torch.Tensor


def _blocks(q: torch.Tensor, before: int | None, starts: torch.Tensor | None) -> Iterator[_Block]:
    length = q.size(2)
    reach = length if before is None else before
    starts = None if starts is None else starts.to(q.device)
    for first in range(0, length, _BLOCK):
        end = min(first + _BLOCK, length)
        oldest = max(first - reach, 0)
        rows = torch.arange(first, end, device=q.device)[:, None]
        keys = torch.arange(oldest, end, device=q.device)
        hidden = (keys > rows) | (keys < rows - reach)
        if starts is not None:
            hidden = hidden | (keys < starts[:, first:end, None])
        yield _Block(slice(first, end), slice(oldest, end), hidden)
