"""Make one tensor of Megatron's of several of Hugging Face's, and the reverse, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron.flagscale.convert.families import QKV, Entry
from megatron.flagscale.convert.model import Model


def join(entry: Entry, model: Model, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the tensor of shape `entry.shape` that `parts`, of shapes `entry.parts`, make up."""
    if len(parts) == 1:
        return parts[0]
    if entry.join == QKV:
        # Each group of query heads is followed by its key and its value.
        return torch.cat([part.unflatten(0, (model.groups, -1)) for part in parts], dim=1).flatten(0, 1)
    return torch.cat(list(parts))


def split(entry: Entry, model: Model, tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors of shapes `entry.parts` that make up `tensor`, of shape `entry.shape`."""
    if len(entry.parts) == 1:
        return [tensor]
    rows = [part[0] for part in entry.parts]
    if entry.join == QKV:
        grouped = tensor.unflatten(0, (model.groups, -1)).split([r // model.groups for r in rows], dim=1)
        return [part.flatten(0, 1) for part in grouped]
    return list(tensor.split(rows))
