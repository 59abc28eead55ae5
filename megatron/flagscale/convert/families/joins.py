"""Make one tensor of Megatron from tensors of Hugging Face, and the reverse, bit for bit.

A family may define a `Join` of its own. Torch is imported only to join tensors: tables do not need it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from megatron.flagscale.convert.model import Model

if TYPE_CHECKING:
    import torch

Shape = tuple[str, ...]
"""The names of a tensor's extents (see `Family.extents`)."""


class Join(Protocol):
    """Makes one tensor of Megatron from one or more of Hugging Face, and splits it again."""

    def shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """Return the shapes of the Hugging Face tensors, given the shape of Megatron's tensor."""

    def join(self, parts: Sequence[torch.Tensor], model: Model) -> torch.Tensor:
        """Return Megatron's tensor."""

    def split(self, tensor: torch.Tensor, model: Model) -> Sequence[torch.Tensor]:
        """Return the Hugging Face tensors, in the order of the row."""


class _Copy:
    def shapes(self, shape: Shape) -> tuple[Shape, ...]:
        return (shape,)

    def join(self, parts: Sequence[torch.Tensor], model: Model) -> torch.Tensor:
        (tensor,) = parts
        return tensor

    def split(self, tensor: torch.Tensor, model: Model) -> Sequence[torch.Tensor]:
        return (tensor,)


@dataclass(frozen=True)
class Gated:
    """Gate and up projections, concatenated; `half` is the extent of each."""

    half: str = "ffn"

    def shapes(self, shape: Shape) -> tuple[Shape, ...]:
        return ((self.half, *shape[1:]),) * 2

    def join(self, parts: Sequence[torch.Tensor], model: Model) -> torch.Tensor:
        import torch

        return torch.cat(list(parts))

    def split(self, tensor: torch.Tensor, model: Model) -> Sequence[torch.Tensor]:
        return list(tensor.chunk(2))


@dataclass(frozen=True)
class Qkv:
    """Query, key and value by group of heads; `rows` are their extents.

    `heads` returns the number of heads, of their groups, and the size of a head.
    """

    rows: Shape
    heads: Callable[[Model], tuple[int, int, int]]

    def shapes(self, shape: Shape) -> tuple[Shape, ...]:
        return tuple((rows, *shape[1:]) for rows in self.rows)

    def join(self, parts: Sequence[torch.Tensor], model: Model) -> torch.Tensor:
        import torch

        _, groups, _ = self.heads(model)
        return torch.cat([part.unflatten(0, (groups, -1)) for part in parts], dim=1).flatten(0, 1)

    def split(self, tensor: torch.Tensor, model: Model) -> Sequence[torch.Tensor]:
        heads, groups, size = self.heads(model)
        parts = tensor.unflatten(0, (groups, -1)).split([heads // groups * size, size, size], dim=1)
        return [part.flatten(0, 1) for part in parts]


def _of_tower(model: Model) -> tuple[int, int, int]:
    assert model.vision
    tower = model.vision.tower
    return tower.heads, tower.heads, tower.hidden // tower.heads


COPY: Join = _Copy()
"""The same tensor in both formats."""
GATED: Join = Gated()
"""Gate and up projections of an MLP or an expert."""
QKV: Join = Qkv(("query", "key", "key"), lambda model: (model.heads, model.groups, model.head_dim))
"""Each group of query heads, followed by its key and its value."""
TOWER_QKV: Join = Qkv(("tower",) * 3, _of_tower)
"""The same in a vision tower, each of whose heads is a group."""
