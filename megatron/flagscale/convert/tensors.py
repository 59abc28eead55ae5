"""The stream of tensors between formats: the tensors of a model in order, their sources and targets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

from megatron.flagscale.convert.families.base import Row
from megatron.flagscale.convert.families.joins import Join
from megatron.flagscale.convert.families.llava import rows_of, sizes_of
from megatron.flagscale.convert.model import Model

if TYPE_CHECKING:
    import torch

EMBEDDING, OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"
"""Megatron's names of the two tensors that are one in a tied model."""

_NUMBERS = ("depth", "layer", "tower_layer")
"""What can tell the tensors of a row apart."""


@dataclass(frozen=True)
class Entry:
    """One tensor of the stream: all of Megatron's tensor `megatron`, or the part of one expert.

    `huggingface` names the tensors from which it is joined; `parts` are their shapes. Hugging Face's format
    holds the whole tensor once more as each of `copies`. The precision of an `exact` tensor never changes.
    `stacked` is the number of experts if each Hugging Face tensor holds those of all of them, otherwise 0.
    """

    megatron: str
    also: str
    expert: int | None
    shape: tuple[int, ...]
    huggingface: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]
    join: Join
    copies: tuple[str, ...]
    exact: bool
    stacked: int = 0

    @property
    def stored_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the tensors in Hugging Face's format, in the order of `huggingface`."""
        return tuple((self.stacked, *part) if self.stacked else part for part in self.parts)

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
    sizes = sizes_of(model)
    rows = _tied(rows_of(model)) if model.tied else rows_of(model)
    depths = [{"layer": model.layers + depth, "depth": depth} for depth in range(model.mtp)]
    places: Mapping[str, list[dict[str, int]]] = {
        "": [{}],
        "layer": [{"layer": layer} for layer in range(model.layers)],
        "depth": depths,
        "tower_layer": [{"tower_layer": layer} for layer in range(model.vision.tower.layers)]
        if model.vision
        else [],
    }
    for section, group in groupby(rows, _section):
        section_rows = list(group)
        for place in places[section]:
            for row in section_rows:
                if "layer" in place and not row.when(model, place["layer"]):
                    continue
                copies = tuple(name.format(**depth) for depth in depths for name in row.copies)
                several = row.stacked or any("{expert}" in name for name in row.huggingface)
                stacked = model.experts if row.stacked else 0
                for expert in range(model.experts) if several else (None,):
                    yield _entry(sizes, row, place, expert, copies, stacked)


def _tied(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of a tied model: the embedding is also the output, and has that one's copies."""
    (copies,) = (row.copies for row in rows if row.megatron == OUTPUT)
    return [
        replace(row, copies=row.copies + copies) if row.megatron == EMBEDDING else row
        for row in rows
        if row.megatron != OUTPUT
    ]


def _section(row: Row) -> str:
    """Return the number that tells the tensors of a row apart, beside that of an expert; "" if none does."""
    return next((number for number in _NUMBERS if f"{{{number}}}" in row.megatron), "")


def _entry(
    sizes: Mapping[str, int],
    row: Row,
    place: Mapping[str, int],
    expert: int | None,
    copies: tuple[str, ...],
    stacked: int,
) -> Entry:
    return Entry(
        row.megatron.format(**place),
        row.also.format(**place),
        expert,
        tuple(sizes[name] for name in row.shape),
        tuple(name.format(**place, expert=expert) for name in row.huggingface),
        tuple(tuple(sizes[name] for name in shape) for shape in row.join.shapes(row.shape)),
        row.join,
        copies,
        row.exact,
        stacked,
    )
