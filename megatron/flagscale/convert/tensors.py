"""The stream of tensors between formats: the tensors of a model in order, their sources and targets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

from megatron.flagscale.convert.families import registry
from megatron.flagscale.convert.families.base import Row
from megatron.flagscale.convert.families.joins import Join
from megatron.flagscale.convert.model import Model

if TYPE_CHECKING:
    import torch

EMBEDDING, OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"
"""Megatron's names of the two tensors that are one in a tied model."""


@dataclass(frozen=True)
class Entry:
    """One tensor of the stream: all of Megatron's tensor `megatron`, or the part of one expert.

    `huggingface` names the tensors from which it is joined; `parts` are their shapes.
    """

    megatron: str
    also: str
    expert: int | None
    shape: tuple[int, ...]
    huggingface: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]
    join: Join

    @property
    def has_vocabulary(self) -> bool:
        """Whether its rows are tokens; Megatron pads such tensors."""
        return self.megatron in (EMBEDDING, OUTPUT)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class Source(Protocol):
    """A model whose tensors can be read one by one, named and joined as in `entries(model)`."""

    model: Model

    def dtype(self, entry: Entry) -> torch.dtype:
        """Return the precision of a tensor, without reading it."""

    def read(self, entry: Entry) -> torch.Tensor:
        """Return a tensor of shape `entry.shape`."""


class Target(Protocol):
    """Writes every tensor of `entries(model)`, in order."""

    def write(self, entry: Entry, tensor: torch.Tensor) -> None:
        """Append a tensor of shape `entry.shape`."""

    def finish(self) -> None:
        """Write everything else that a complete model needs."""

    def close(self) -> None:
        """Close open files; call it after a failure, too."""


def entries(model: Model) -> Iterator[Entry]:
    """Yield every tensor of a model, from the embedding to the output: exactly those that a folder holds."""
    family = registry.load(model.family)
    sizes = family.sizes(model)
    rows = [row for row in family.rows if not (model.tied and row.megatron == OUTPUT)]
    for repeated, group in groupby(rows, lambda row: "{layer}" in row.megatron):
        section = list(group)
        for layer in range(model.layers) if repeated else (None,):
            for row in section:
                several = any("{expert}" in name for name in row.huggingface)
                for expert in range(model.experts) if several else (None,):
                    yield _entry(sizes, row, layer, expert)


def _entry(sizes: Mapping[str, int], row: Row, layer: int | None, expert: int | None) -> Entry:
    return Entry(
        row.megatron.format(layer=layer),
        row.also.format(layer=layer),
        expert,
        tuple(sizes[name] for name in row.shape),
        tuple(name.format(layer=layer, expert=expert) for name in row.huggingface),
        tuple(tuple(sizes[name] for name in shape) for shape in row.join.shapes(row.shape)),
        row.join,
    )
