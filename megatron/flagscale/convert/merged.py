"""A model into which an adapter is merged."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

from flagscale.errors import Problem, UserError
from megatron.flagscale.convert import adapter_checkpoint, peft_folder
from megatron.flagscale.convert.adapters import Adapter, Projection
from megatron.flagscale.convert.model import Model
from megatron.flagscale.convert.tensors import Entry, Source
from megatron.flagscale.convert.torch_dist import TorchDistSource


@dataclass(frozen=True)
class AdapterFolder:
    """The folder of an adapter, of PEFT or of checkpoints; `iteration` chooses one of these."""

    folder: Path
    iteration: int | None = None

    def open(self, base: Source) -> Adapter:
        """Return the adapter; raises `UserError` if it does not belong to the base."""
        if not peft_folder.is_folder(self.folder):
            checkpoint = base.folder if isinstance(base, TorchDistSource) else None
            return adapter_checkpoint.open_checkpoint(self.folder, base.model, self.iteration, checkpoint)
        if self.iteration is not None:
            what = "has no effect on a folder of PEFT, which holds only one adapter"
            raise UserError([Problem(what, "--iteration", "leave it out")])
        return peft_folder.open_folder(self.folder, base.model)


class Merged:
    """A source whose weights are W + scale * B A, computed in fp32 and rounded once to W's precision."""

    def __init__(self, base: Source, adapter: Adapter) -> None:
        self.model: Model = base.model
        self._base, self._adapter = base, adapter
        self._changed: dict[Entry, list[Projection]] = defaultdict(list)
        for one in adapter.projections:
            self._changed[one.entry].append(one)

    def dtype(self, entry: Entry) -> torch.dtype:
        """Return the precision of the base's tensor."""
        return self._base.dtype(entry)

    def read(self, entry: Entry) -> torch.Tensor:
        """Return the base's tensor, changed where the adapter changes it."""
        tensor = self._base.read(entry)
        if entry not in self._changed:
            return tensor
        parts = [*entry.join.split(tensor.float(), self.model)]
        for one in self._changed[entry]:
            a, b = (matrix.float() for matrix in self._adapter.read(one))
            parts[one.part] = parts[one.part] + self._adapter.lora.scale * (b @ a)
        return entry.join.join(parts, self.model).to(tensor.dtype)
