"""Adapters (LoRA): their matrices in both formats, by the rows of the base's family.

An adapter changes a projection, a matrix W that a linear layer of Megatron joins, to W + scale * B A, where A
is `[rank, in]` and B is `[out, rank]`, both in the order of Hugging Face's rows. A checkpoint of a training
and a folder of PEFT hold the same matrices under different names.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flagscale.checks.lora import LAYERS
from flagscale.errors import Problem, UserError
from megatron.flagscale.convert.families.joins import COPY, Gated, Qkv
from megatron.flagscale.convert.model import Model
from megatron.flagscale.convert.tensors import Entry, entries

if TYPE_CHECKING:
    import torch

_LAYER = re.compile(r"(decoder\.layers\.\d+\..*\b(linear_\w+))\.weight")
_IS_ADAPTER = re.compile(r"\.adapters\.\w+\.[ab]\.weight$")
_SHOWN = 3
"""Tensors that a message names at most."""


@dataclass(frozen=True)
class Lora:
    """The settings of an adapter."""

    rank: int
    alpha: float
    dropout: float = 0.0

    @property
    def scale(self) -> float:
        """The factor of B A."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class Projection:
    """A matrix that an adapter can change: part `part` of `entry`, of `shape` (out, in).

    `megatron` is the name of its adapter in a checkpoint, `huggingface` that of its module.
    """

    kind: str
    megatron: str
    huggingface: str
    shape: tuple[int, int]
    entry: Entry
    part: int


def is_adapter(name: str) -> bool:
    """Return whether a tensor of a checkpoint belongs to an adapter."""
    return bool(_IS_ADAPTER.search(name))


def projections(model: Model) -> Iterator[Projection]:
    """Yield every projection of a model's layers in the order of `entries`, without those of its tower.

    A family's own joins, for instance of transposed matrices, are left out: B A has another form there.
    """
    for entry in entries(model):
        layer = _LAYER.fullmatch(entry.megatron)
        kinds = LAYERS.get(layer[2], ()) if layer else ()
        if len(entry.parts) == 1 and kinds == LAYERS["linear_fc1"]:
            kinds = kinds[1:]  # an MLP without a gate
        if not layer or len(kinds) != len(entry.parts) or not _keeps_rows(entry):
            continue
        module = layer[1].replace(".experts.experts.", f".experts.local_experts.{entry.expert}.")
        for part, (kind, name, shape) in enumerate(zip(kinds, entry.huggingface, entry.parts, strict=True)):
            adapter, own = f"{module}.adapters.{kind}", name.removesuffix(".weight")
            yield Projection(kind, adapter, own, (shape[0], shape[1]), entry, part)


def _keeps_rows(entry: Entry) -> bool:
    return entry.join is COPY or isinstance(entry.join, Gated | Qkv)


Names = Callable[[Projection], tuple[str, str]]
"""The names of A and B in a format."""


class Adapter:
    """An adapter whose tensors match its base in names and shapes, and are finite.

    Raises:
        UserError: they do not; lists all differences.
    """

    def __init__(
        self,
        where: Path,
        lora: Lora,
        model: Model,
        names: Names,
        stored: Mapping[str, tuple[int, ...]],
        read: Callable[[str], torch.Tensor],
        problems: Sequence[Problem] = (),
    ) -> None:
        """`problems` are those already found in the settings, reported with those of the tensors."""
        self.lora, self.model = lora, model
        self._names, self._read = names, read
        every = [*projections(model)]
        self.projections = tuple(one for one in every if any(name in stored for name in names(one)))
        found = [Problem(what, str(where)) for what in _differences(every, names, stored, lora.rank, model)]
        found = [*problems, *found] or [Problem(what, str(where)) for what in self._not_finite()]
        if found:
            raise UserError(found)

    def read(self, projection: Projection) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A `[rank, in]` and B `[out, rank]`, as stored."""
        a, b = (self._read(name) for name in self._names(projection))
        return a, b

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of its projections, in the order of `LAYERS`."""
        own = {one.kind for one in self.projections}
        return tuple(dict.fromkeys(kind for kinds in LAYERS.values() for kind in kinds if kind in own))

    def gaps(self) -> Iterator[str]:
        """Yield each kind of projection that some layers have in the adapter, and others only in the base."""
        own = {*self.projections}
        for kind in self.kinds:
            lacking = [
                one.huggingface for one in projections(self.model) if one.kind == kind and one not in own
            ]
            if lacking:
                yield f"it changes {kind} in some layers, but not {_some(lacking)}"

    def _not_finite(self) -> Iterator[str]:
        wrong = []
        for projection in self.projections:
            for name in self._names(projection):
                if not self._read(name).isfinite().all():
                    wrong.append(name)
        if wrong:
            yield f"{len(wrong)} tensors hold NaN or infinity: {_some(wrong)}"


def _differences(
    every: Sequence[Projection], names: Names, stored: Mapping[str, tuple[int, ...]], rank: int, model: Model
) -> Iterator[str]:
    expected: dict[str, tuple[int, ...]] = {}
    missing = []
    for one in every:
        (a, b), (rows, columns) = names(one), one.shape
        expected |= {a: (rank, columns), b: (rows, rank)}
        missing += [name for name, other in ((a, b), (b, a)) if name not in stored and other in stored]
    base = f"the base, a {model.family} of {model.layers} layers"
    if extra := sorted(stored.keys() - expected.keys()):
        yield f"{len(extra)} tensors do not belong to {base}: {_some(extra)}"
    if missing:
        yield f"{len(missing)} tensors are missing: {_some(missing)}"
    if not stored:
        yield "contains no tensors of an adapter"
    # The layers have the same shapes.
    wrong: dict[tuple[str, tuple[int, ...], tuple[int, ...]], list[str]] = defaultdict(list)
    for name in sorted(stored.keys() & expected.keys()):
        if stored[name] != expected[name]:
            wrong[re.sub(r"\d+", "N", name), stored[name], expected[name]].append(name)
    for (_, found, shape), alike in wrong.items():
        others = f" (and {len(alike) - 1} like it)" if len(alike) > 1 else ""
        what = f"{alike[0]}{others} has shape {list(found)}, but rank {rank} and the base give {list(shape)}"
        yield what


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def settings_problems(rank: Any, alpha: Any, dropout: Any) -> Iterator[str]:
    """Yield what is wrong with the settings of an adapter."""
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        yield f"its rank is {rank!r}; a positive whole number is needed"
    if not _is_number(alpha) or not alpha > 0:
        yield f"its alpha is {alpha!r}; a positive number is needed"
    if not _is_number(dropout) or not 0 <= dropout < 1:
        yield f"its dropout is {dropout!r}; a number of at least 0 and less than 1 is needed"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
