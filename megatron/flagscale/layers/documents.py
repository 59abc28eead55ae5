"""Causal attention within each of the documents that are packed into a sample (`reset_attention_mask`).

A mask would be a matrix of the squared sequence length per sample. The start positions of the documents are
enough: attention is computed document by document, with the kernel for plain causal attention.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megatron.flagscale.layers.context import merge
from megatron.flagscale.layers.kernels import attend, attend_backward


def document_starts(tokens: torch.Tensor, eod: int) -> torch.Tensor:
    """Return the start position of the document of each token of `[b, s]`; a document ends with `eod`.

    The result `[b, s]` is on the host: it decides which kernels are called, and reading it must not wait for
    the device.
    """
    after_an_end = (tokens == eod).roll(1, dims=1)
    after_an_end[:, 0] = True
    positions = torch.arange(tokens.size(1), device=tokens.device)
    return (positions * after_an_end).cummax(1).values.cpu()


def document_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts: torch.Tensor,
    chunks: Sequence[tuple[int, int]],
    scale: float,
) -> torch.Tensor:
    """Return causal attention within documents, `[b, heads, sq, dv]`.

    `q [b, heads, sq, d]` holds the positions of `chunks`, a list of `(first, end)`, in the sequence that
    `k [b, groups, s, d]` and `v [b, groups, s, dv]` hold in full; `starts [b, s]` is the result of
    `document_starts`.
    """
    return _ByDocument.apply(q, k, v, tuple(_pieces(starts.tolist(), chunks)), scale)


@dataclass(frozen=True)
class _Piece:
    """Queries of one sample and the keys they attend to: all of them, or (`causal`) only earlier ones."""

    sample: slice
    queries: slice
    keys: slice
    causal: bool


def _pieces(starts: Sequence[Sequence[int]], chunks: Sequence[tuple[int, int]]) -> Iterator[_Piece]:
    """Yield, for each chunk's part of a document, its attention to itself, then to what is before it."""
    for number, documents in enumerate(starts):
        sample, done = slice(number, number + 1), 0
        for first, end in chunks:
            while first < end:
                start = documents[first]
                stop = bisect_right(documents, start, first, end)
                queries = slice(done, done + stop - first)
                yield _Piece(sample, queries, slice(first, stop), causal=True)
                if start < first:
                    yield _Piece(sample, queries, slice(start, first), causal=False)
                done, first = queries.stop, stop


class _ByDocument(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pieces: tuple[_Piece, ...], scale: float
    ) -> torch.Tensor:
        b, heads, length, _ = q.shape
        total = torch.promote_types(q.dtype, torch.float32)
        # In memory as Megatron's form of the result, `[sq, b, heads * dv]`.
        out = q.new_empty(length, b, heads, v.size(-1), dtype=total).permute(1, 2, 0, 3)
        lse = q.new_empty(b, heads, length, dtype=total)
        for piece in pieces:
            own, seen = (piece.sample, slice(None), piece.queries), (piece.sample, slice(None), piece.keys)
            part, part_lse = attend(q[own], k[seen], v[seen], piece.causal, scale)
            if piece.causal:
                out[own], lse[own] = part, part_lse
            else:
                merge(out[own], lse[own], part, part_lse)
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.settings = pieces, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        pieces, scale = ctx.settings
        (grad,) = grads
        total = torch.promote_types(q.dtype, torch.float32)
        dq, dk, dv = (torch.zeros_like(tensor, dtype=total) for tensor in (q, k, v))
        for piece in pieces:
            own, seen = (piece.sample, slice(None), piece.queries), (piece.sample, slice(None), piece.keys)
            d_q, d_k, d_v = attend_backward(
                grad[own], q[own], k[seen], v[seen], out[own], lse[own], piece.causal, scale
            )
            dq[own] += d_q
            dk[seen] += d_k
            dv[seen] += d_v
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None
