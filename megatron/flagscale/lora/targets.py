"""Which of a model's linear layers get adapters, and how their projections are joined."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

from flagscale.checks.lora import LAYERS


@dataclass(frozen=True)
class Joined:
    """A linear layer of the decoder: its name in the chunk, and the projections that it joins.

    `rows` are the output sizes of all of its projections in the whole model, in the order of the layer. Its
    own rows are `blocks` (in the whole model) that each hold the next rows of every projection. `wanted` are
    the projections that get adapters.
    """

    name: str
    linear: ColumnParallelLinear | RowParallelLinear
    rows: dict[str, int]
    blocks: int
    wanted: tuple[str, ...]


def linear_layers(chunk: torch.nn.Module, wanted: Collection[str]) -> Iterator[Joined]:
    """Yield the linear layers of a chunk's decoder that have one of the wanted projections.

    A vision tower and the layers of multi-token prediction are not part of the decoder.

    Raises:
        TypeError: such a layer is not one of Megatron's own.
    """
    for name, module in chunk.named_modules():
        kind = name.rpartition(".")[2]
        if kind not in LAYERS or not name.startswith("decoder.layers."):
            continue
        if not isinstance(module, ColumnParallelLinear | RowParallelLinear):
            raise TypeError(f"{name} is a {type(module).__name__}, which cannot have adapters")
        rows, blocks = _rows(kind, module)
        if chosen := tuple(one for one in rows if one in wanted):
            yield Joined(name, module, rows, blocks, chosen)


def _rows(kind: str, linear: ColumnParallelLinear | RowParallelLinear) -> tuple[dict[str, int], int]:
    """Return the rows of each projection of a linear layer in the whole model, and its blocks."""
    config: Any = linear.config
    names = LAYERS[kind]
    if kind == "linear_qkv":
        query = config.num_attention_heads * config.kv_channels
        key = config.num_query_groups * config.kv_channels
        return dict(zip(names, (query, key, key), strict=True)), config.num_query_groups
    if kind == "linear_fc1" and not config.gated_linear_unit:
        names = names[1:]
    # Each rank of a gated MLP holds its part of the gate, followed by its part of the other projection.
    return dict.fromkeys(names, linear.output_size // len(names)), linear.tp_group.size()
