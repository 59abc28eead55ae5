"""Turn a dense model into one with experts, each of which starts as a copy of the dense MLP.

The router weighs the chosen experts by a softmax over these alone, so the weights of a token sum to one and
the copies together compute what the dense MLP computed: the new model starts with the logits of the dense
model, whatever the router chooses.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import torch

from flagscale.errors import Problem, UserError
from megatron.flagscale.convert.families import registry
from megatron.flagscale.convert.families.base import Family
from megatron.flagscale.convert.megatron_args import AUX_LOSS
from megatron.flagscale.convert.model import Model
from megatron.flagscale.convert.tensors import Entry, Source, entries

BALANCING = 0.01
"""The coefficient of the loss that balances the experts: where Megatron recommends to start."""


@dataclass(frozen=True)
class Upcycling:
    """The number of experts, the number of experts per token, and the distribution and seed of the router."""

    experts: int
    topk: int = 2
    std: float = 0.02
    seed: int = 0


def _settings(mixture: Family, dense: Model) -> dict[str, Any]:
    """Return the settings of the new model: those of the dense one, and defaults for the others."""
    values = mixture.class_defaults
    defaults = {one.argument: one.values.get(values[one.key], values[one.key]) for one in mixture.settings}
    defaults |= {AUX_LOSS: BALANCING} if AUX_LOSS in defaults else {}
    return {argument: dense.settings.get(argument, value) for argument, value in defaults.items()}


class Upcycled:
    """A source that provides a dense model's tensors under the names of a model with experts."""

    def __init__(self, dense: Source, how: Upcycling) -> None:
        family = registry.load(dense.model.family)
        problems = []
        if family.has_experts:
            problems.append(Problem("the model already has experts", "--experts"))
        elif not family.mixture:
            known = ", ".join(f"{one.name} to {one.mixture}" for one in registry.families() if one.mixture)
            what = f"experts cannot be added to the family {family.name}; supported: {known}"
            problems.append(Problem(what, "--experts"))
        if how.experts < 1:
            problems.append(Problem(f"{how.experts} is not a number of experts", "--experts"))
        elif not 0 < how.topk <= how.experts:
            problems.append(Problem(f"{how.topk} of {how.experts} experts cannot be chosen", "--topk"))
        if problems:
            raise UserError(problems)
        self.model: Model = replace(
            dense.model,
            family=family.mixture,
            experts=how.experts,
            topk=how.topk,
            settings=_settings(registry.load(family.mixture), dense.model),
        )
        self._dense, self._how = dense, how
        self._entries = {entry.megatron: entry for entry in entries(dense.model)}

    def dtype(self, entry: Entry) -> torch.dtype:
        """Return the precision of the dense tensor; the router has that of the embedding."""
        found = self._origin(entry) or next(iter(self._entries.values()))
        return self._dense.dtype(found)

    def read(self, entry: Entry) -> torch.Tensor:
        """Return the dense tensor, or a random router that depends on its name and the seed."""
        found = self._origin(entry)
        if found is not None:
            return self._dense.read(found)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._how.seed}/{entry.megatron}".encode()))
        drawn = torch.empty(entry.shape).normal_(0.0, self._how.std, generator=generator)
        return drawn.to(self.dtype(entry))

    def _origin(self, entry: Entry) -> Entry | None:
        return self._entries.get(entry.megatron.replace("mlp.experts.experts.", "mlp."))
