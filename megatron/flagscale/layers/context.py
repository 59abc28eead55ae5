"""Causal attention over a sequence that is split across a context parallel group.

Megatron cuts a sequence into `2 n` chunks and gives rank `r` of `n` the chunks `r` and `2 n - 1 - r`, a
zigzag that gives every rank the same work. For rank `r`, the two chunks of a rank `s` are a simple case:

* `s == r`: plain causal attention, because the two chunks are in order;
* `s < r`: all queries of `r` attend to the first chunk of `s`, and none to the second;
* `s > r`: the queries of `r`'s second chunk attend to both chunks of `s`, and those of its first to neither.

No step needs a mask, or more memory than the keys and values of two ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region

from megatron.flagscale.layers.kernels import attend, attend_backward, stored_by_query


def zigzag_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, group: dist.ProcessGroup, ring: bool
) -> torch.Tensor:
    """Return the causal attention of local queries to the whole sequence, `[b, heads, s, dv]`.

    `q [b, heads, s, d]`, `k [b, groups, s, d]` and `v [b, groups, s, dv]` are this rank's parts.

    With `ring`, keys and values travel from rank to rank, one rank's at a time, while the previous ones are
    used; otherwise every rank gathers all of them first. Both give the same output, bit for bit.
    """
    return _Zigzag.apply(q, k, v, scale, group, ring)


class _Zigzag(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        group: dist.ProcessGroup,
        ring: bool,
    ) -> torch.Tensor:
        kv, widths = torch.cat((k, v), -1), (k.size(-1), v.size(-1))
        out = lse = torch.empty(0)
        for source, pair in (_Ring if ring else _Gathered)(kv, group):
            keys, values = pair.split(widths, -1)
            queries, seen, causal = _share(group.rank(), source, q.size(2) // 2)
            part, part_lse = attend(q[:, :, queries], keys[:, :, seen], values[:, :, seen], causal, scale)
            if causal:  # the first step, with this rank's own keys
                out, lse = stored_by_query(part.float()), part_lse
            else:
                merge(out[:, :, queries], lse[:, :, queries], part, part_lse)
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.settings = scale, group, ring, widths
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        scale, group, ring, widths = ctx.settings
        (grad,) = grads
        dq = torch.zeros_like(q, dtype=torch.promote_types(q.dtype, torch.float32))
        others = (_Ring if ring else _Gathered)(torch.cat((k, v), -1), group)
        for source, pair in others:
            keys, values = pair.split(widths, -1)
            queries, seen, causal = _share(group.rank(), source, q.size(2) // 2)
            d_q, d_k, d_v = attend_backward(
                grad[:, :, queries],
                q[:, :, queries],
                keys[:, :, seen],
                values[:, :, seen],
                out[:, :, queries],
                lse[:, :, queries],
                causal,
                scale,
            )
            dq[:, :, queries] += d_q
            others.add(source, seen, torch.cat((d_k, d_v), -1))
        dk, dv = others.collect().to(k.dtype).split(widths, -1)
        return dq.to(q.dtype), dk, dv, None, None, None


def _share(rank: int, source: int, chunk: int) -> tuple[slice, slice, bool]:
    """Return which of the rank's queries attend to which keys of `source`, and whether causally."""
    if source == rank:
        return slice(None), slice(None), True
    if source < rank:
        return slice(None), slice(0, chunk), False
    return slice(chunk, None), slice(None), False


def merge(out: torch.Tensor, lse: torch.Tensor, part: torch.Tensor, more: torch.Tensor) -> None:
    """Merge, in place, attention over more keys into the attention so far, each with its log-sum-exp."""
    total = torch.logaddexp(lse, more)
    out.mul_(torch.exp(lse - total)[..., None]).add_(part * torch.exp(more - total)[..., None])
    lse.copy_(total)


class _Gathered:
    """All ranks' keys and values, gathered at once; their gradients are summed at the end."""

    def __init__(self, kv: torch.Tensor, group: dist.ProcessGroup) -> None:
        self.group = group
        gathered = kv.new_empty(group.size() * kv.size(0), *kv.shape[1:])
        dist.all_gather_into_tensor(gathered, kv, group=group)
        self.all = gathered.unflatten(0, (group.size(), -1))  # [ranks, b, groups, s, d + dv]
        self.grads = torch.zeros_like(self.all, dtype=torch.promote_types(kv.dtype, torch.float32))

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor]]:
        for step in range(self.group.size()):
            source = (self.group.rank() - step) % self.group.size()
            yield source, self.all[source]

    def add(self, source: int, seen: slice, grads: torch.Tensor) -> None:
        """Add to the gradients of the keys and values that `source` holds."""
        self.grads[source][:, :, seen] += grads

    def collect(self) -> torch.Tensor:
        """Return the gradients of this rank's keys and values."""
        own = torch.empty_like(self.grads[0])
        dist.reduce_scatter_tensor(own, self.grads.flatten(0, 1), group=self.group)
        return own


class _Ring:
    """Keys and values travel from rank to rank; their gradients follow one step behind, back to the owner."""

    def __init__(self, kv: torch.Tensor, group: dist.ProcessGroup) -> None:
        self.group = group
        self.kv = kv
        self.grads = torch.zeros_like(kv, dtype=torch.promote_types(kv.dtype, torch.float32))
        self.travelling: _Message | None = None

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor]]:
        size = self.group.size()
        for step in range(size):
            message = _Message(self.kv, self.group, tag=0) if step + 1 < size else None
            yield (self.group.rank() - step) % size, self.kv
            if message:
                self.kv = message.wait()

    def add(self, source: int, seen: slice, grads: torch.Tensor) -> None:
        """Add to the gradients of the current keys and values, and pass them on."""
        if self.travelling:
            self.grads = self.travelling.wait()
        self.grads[:, :, seen] += grads
        self.travelling = _Message(self.grads, self.group, tag=1)

    def collect(self) -> torch.Tensor:
        """Return the gradients of this rank's keys and values."""
        assert self.travelling
        return self.travelling.wait()


class _Message:
    """A tensor in flight to the next rank, while one of the same shape comes from the previous rank."""

    def __init__(self, tensor: torch.Tensor, group: dist.ProcessGroup, tag: int) -> None:
        self.sent = tensor  # kept alive until it is received
        self.received = torch.empty_like(tensor)
        after, before = ((group.rank() + step) % group.size() for step in (1, -1))
        send = dist.P2POp(dist.isend, tensor, group=group, tag=tag, group_peer=after)
        receive = dist.P2POp(dist.irecv, self.received, group=group, tag=tag, group_peer=before)
        self.requests = dist.batch_isend_irecv([send, receive])

    def wait(self) -> torch.Tensor:
        for request in self.requests:
            request.wait()
        return self.received


def gather_sequence(local: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Return the whole sequence in order, `[n s, ...]`, from zigzag parts `[s, ...]`; differentiable."""
    parts = gather_from_sequence_parallel_region(local, group=group)
    return in_order(parts.unflatten(0, (group.size(), 2, -1)))


def in_order(parts: torch.Tensor) -> torch.Tensor:
    """Return the sequence in order, `[n s, ...]`, from the two chunks of each rank, `[n, 2, s / 2, ...]`."""
    early, late = parts.unbind(1)
    return torch.cat((early, late.flip(0))).flatten(0, 1)


def in_zigzag(whole: torch.Tensor, size: int) -> torch.Tensor:
    """Return the two chunks of each of `size` ranks, `[n, 2, s / 2, ...]`, from a sequence `[n s, ...]`."""
    early, late = whole.unflatten(0, (2 * size, -1)).split(size)
    return torch.stack((early, late.flip(0)), 1)


def local_chunks(length: int, group: dist.ProcessGroup) -> tuple[tuple[int, int], ...]:
    """Return the `(first, end)` ranges of the `length` local positions in the whole sequence."""
    size = group.size()
    if size == 1:
        return ((0, length),)
    chunk = length // 2
    return tuple((at * chunk, (at + 1) * chunk) for at in (group.rank(), 2 * size - 1 - group.rank()))
