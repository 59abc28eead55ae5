"""A Megatron checkpoint (`torch_dist`) as a target, one tensor at a time, without a trainer."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from megatron.flagscale.convert.megatron_args import checkpoint_arguments
from megatron.flagscale.convert.model import Model
from megatron.flagscale.convert.tensors import Entry
from megatron.flagscale.convert.torch_dist_writer import TorchDistWriter

_LINEAR = re.compile(r"\.(linear_\w+|eh_proj)\.weight$")
"""The weights of linear layers."""


class TorchDistTarget:
    """Writes a checkpoint that `megatron.training` loads in every layout: parameters without optimizer state.

    The vocabulary is written without padding: the trainer adds the rows of zeros that its layout needs.
    """

    def __init__(self, folder: Path, model: Model) -> None:
        self._model = model
        self._writer = TorchDistWriter(folder)

    def write(self, entry: Entry, tensor: torch.Tensor) -> None:
        """Append a tensor; that of an expert becomes a part of the tensor of all experts."""
        for key in filter(None, (entry.megatron, entry.also)):
            if entry.expert is None:
                self._writer.write(key, tensor)
            else:
                offsets = [entry.expert, *(0 for _ in tensor.shape)]
                self._writer.write(key, tensor.unsqueeze(0), offsets, [self._model.experts, *tensor.shape])
        if _LINEAR.search(entry.megatron):
            # The trainer expects an extra state for every linear layer; without fp8 it is empty.
            shard = "shard_0_1" if entry.expert is None else f"shard_{entry.expert}_{self._model.experts}"
            self._writer.write_object(f"{entry.megatron.removesuffix('weight')}_extra_state/{shard}", [None])

    def finish(self) -> None:
        """Write everything else that a checkpoint needs: common state, metadata, manifest, tracker."""
        self._writer.finish(checkpoint_arguments(self._model))

    def close(self) -> None:
        """Close the open file; call it after a failure, too."""
        self._writer.close()
