"""Leave out the layers of a model for multi-token prediction."""

from __future__ import annotations

from dataclasses import replace

import torch

from flagscale.errors import Problem, UserError
from megatron.flagscale.convert.model import Model
from megatron.flagscale.convert.tensors import Entry, Source, entries


class WithoutMtp:
    """A source that provides a model without its layers for multi-token prediction.

    Raises:
        UserError: the model has none.
    """

    def __init__(self, whole: Source) -> None:
        if not whole.model.mtp:
            what = "has no effect: the model has no layers for multi-token prediction"
            raise UserError([Problem(what, "--without-mtp", "leave it out")])
        self.model: Model = replace(whole.model, mtp=0)
        self._whole = whole
        self._entries = {(entry.megatron, entry.expert): entry for entry in entries(whole.model)}
        left_out = len(self._entries) - sum(1 for _ in entries(self.model))
        layers = f"{whole.model.mtp} layers" if whole.model.mtp > 1 else "1 layer"
        self.notice = f"left out: {layers} for multi-token prediction ({left_out} tensors)"

    def dtype(self, entry: Entry) -> torch.dtype:
        """Return the precision of a tensor as stored."""
        return self._whole.dtype(self._entries[entry.megatron, entry.expert])

    def read(self, entry: Entry) -> torch.Tensor:
        """Return the tensor of an entry of `entries(self.model)`."""
        return self._whole.read(self._entries[entry.megatron, entry.expert])
