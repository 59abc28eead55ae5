"""Heads for sequence: an all-to-all that gives a rank the whole sequence of some heads, and back (Ulysses).

A context parallel rank holds a part of the sequence with all heads. Attention treats each head separately, so
once ranks have exchanged parts until each has all positions of its share of the heads, they need no further
messages for it. Megatron's zigzag (see context.py) is undone on the way, and restored on the way back.

An exchange moves values and changes none: its gradient is the exchange back, and it keeps nothing for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.mappings import all_to_all

from megatron.flagscale.layers.context import gather_sequence, in_order, in_zigzag


def to_heads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: dist.ProcessGroup
) -> Sequence[torch.Tensor]:
    """Return this rank's heads over the whole sequence: `[s, b, heads, d]` to `[n s, b, heads / n, d]`.

    All three travel in one message. The heads of the queries must be a multiple of the `n` ranks. If the
    groups of keys and values are not, they are repeated for the ranks that share them, as few times as
    possible.
    """
    size = group.size()
    heads = (query, *(_repeated(tensor, size) for tensor in (key, value)))
    parts = [tensor.unflatten(2, (size, -1)).flatten(3).permute(2, 0, 1, 3) for tensor in heads]
    received = all_to_all(group, torch.cat(parts, -1)).split([part.size(3) for part in parts], -1)
    wholes = (in_order(part.unflatten(1, (2, -1))) for part in received)
    return [own.unflatten(2, (-1, tensor.size(3))) for own, tensor in zip(wholes, heads, strict=True)]


def to_sequence(out: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Return this rank's part of the sequence with all heads: `[n s, b, x]` to `[s, b, n x]`."""
    received: torch.Tensor = all_to_all(group, in_zigzag(out, group.size()).flatten(1, 2))
    return received.permute(1, 2, 0, 3).flatten(2)


def whole_mask(rows: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Return the mask `[.., n s, sk]` of the whole sequence from this rank's rows `[.., s, sk]`."""
    return gather_sequence(rows.movedim(2, 0), group).movedim(0, 2)


def _repeated(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """Return keys or values `[s, b, groups, d]` with each group repeated until `size` ranks can share them.

    Queries are still next to their group, because the heads are a multiple of both numbers.
    """
    copies = size // gcd(size, tensor.size(2))
    return tensor.unsqueeze(3).expand(-1, -1, -1, copies, -1).flatten(2, 3)
