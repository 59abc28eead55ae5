"""The core of multi-latent attention, which keeps neither keys nor values but what they are joined from."""

from __future__ import annotations

from typing import Any

import torch

from megatron.flagscale.layers.attention import Attention


class LatentCore(Attention):
    """Attention of queries `[s, b, heads, plain + rotary]`, with keys and values in their projected form.

    `key` holds keys without positions and values, `[s, b, heads, plain + dv]`; `value` holds the part of the
    keys that has positions and is common to all heads, `[s, b, 1, rotary]`. Whatever the attention saves of
    the joined keys and values is joined again for the backward pass. For 128 + 64 and 128 elements, as in
    DeepSeek-V3, a head keeps 256 elements per token instead of 320.
    """

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        starts: torch.Tensor | None,
        causal: bool,
    ) -> torch.Tensor:
        plain = query.size(-1) - value.size(-1)
        keys, values = _Join.apply(key, value, plain)
        again = _Again(key.detach(), value.detach(), plain, (keys, values))
        with torch.autograd.graph.saved_tensors_hooks(again.pack, again.unpack):
            return super()._attend(query, keys, values, mask, starts, causal)


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kv: torch.Tensor, rotary: torch.Tensor, plain: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.plain = plain
        return join(kv, rotary, plain)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_key, of_value = grads
        of_kv = torch.cat((of_key[..., : ctx.plain], of_value), -1)
        return of_kv, of_key[..., ctx.plain :].sum(2, keepdim=True), None


def join(kv: torch.Tensor, rotary: torch.Tensor, plain: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys `[s, b, heads, plain + rotary]` and values, each with a storage of its own."""
    key = torch.cat((kv[..., :plain], rotary.expand(-1, -1, kv.size(2), -1)), -1)
    return key, kv[..., plain:].contiguous()


class _Again:
    """Hooks for saved tensors: keys and values, and views of them, are kept as what they are joined from."""

    def __init__(
        self, kv: torch.Tensor, rotary: torch.Tensor, plain: int, joined: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        self.sources = kv, rotary, plain
        self.storages = [_storage(tensor) for tensor in joined]
        self.made: tuple[torch.Tensor, torch.Tensor] | None = None

    def pack(self, saved: torch.Tensor) -> Any:
        if _storage(saved) not in self.storages:
            return saved
        return self.storages.index(_storage(saved)), saved.shape, saved.stride(), saved.storage_offset()

    def unpack(self, packed: Any) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        if self.made is None:  # once for both; autograd drops these hooks when it has used what they hold
            self.made = join(*self.sources)
        which, *view = packed
        return self.made[which].as_strided(*view)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
