"""What a conversion reads from, whatever the format."""

from __future__ import annotations

from typing import Protocol

import torch

from megatron.flagscale.convert.families import Entry
from megatron.flagscale.convert.model import Model


class Source(Protocol):
    """A model whose tensors can be read one by one, in the names and joins of `entries(model)`."""

    model: Model

    def dtype(self, entry: Entry) -> torch.dtype:
        """The precision of a tensor, known before it is read."""

    def read(self, entry: Entry) -> torch.Tensor:
        """A tensor of shape `entry.shape`."""
