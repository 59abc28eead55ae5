"""The adapters of one linear layer: what they add to its output, on a rank's part of the layer.

With tensor parallelism, a column parallel layer has its B split by rows, and a row parallel one its A split
by columns; the other matrix is the same on all ranks. They exchange `A x`, which has the rank as its width.

The `torch` and `local` layers are Megatron's own (`tensor_parallel/layers.py`, megatron-core 0.19.2), whose
inputs, outputs and sums over ranks are described there; those of experts leave all exchange to the
dispatcher.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.random import (
    get_cuda_rng_tracker,
    get_data_parallel_rng_tracker_name,
    get_expert_parallel_rng_tracker_name,
)

from megatron.flagscale.layers.activation import ActivatedLinear, GatedActivation, Linear, activated_product
from megatron.flagscale.lora.targets import Joined


class Matrix(torch.nn.Module):
    """A weight, which its linear layer's adapters multiply by."""

    def __init__(self, rows: int, columns: int, like: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(rows, columns, dtype=like.dtype, device=like.device))


class Adapter(torch.nn.Module):
    """The matrices of one projection: A `[rank, in]` and B `[out, rank]`, or this rank's part of them."""

    def __init__(self, rank: int, inputs: int, outputs: int, like: torch.Tensor) -> None:
        super().__init__()
        self.a = Matrix(rank, inputs, like)
        self.b = Matrix(outputs, rank, like)


class Adapters(torch.nn.ModuleDict):
    """The adapters of a linear layer, by projection.

    Called with the layer's input, they return what is added to its output, in the layout of that output.
    """

    def __init__(self, joined: Joined, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        linear = joined.linear
        self.scale, self.dropout = scale, dropout
        self.tp_group, self.is_expert = linear.tp_group, linear.is_expert
        size = self.tp_group.size()
        self.is_column = isinstance(linear, ColumnParallelLinear)
        self.has_own_exchange = not linear.explicit_expert_comm and size > 1
        self.is_sequence_parallel = self.has_own_exchange and linear.sequence_parallel
        self.activated = linear.config if isinstance(linear, ActivatedLinear) else None
        split = (size, 1) if self.is_column else (1, size)
        self.rows = {name: rows // split[0] for name, rows in joined.rows.items()}
        self.blocks = joined.blocks // split[0] if self.is_column else 1
        for name in joined.wanted:
            made = Adapter(rank, linear.input_size // split[1], self.rows[name], linear.weight)
            self[name] = made
            self._set_attributes(made, linear.weight)

    def _set_attributes(self, adapter: Adapter, weight: torch.Tensor) -> None:
        """Set what tells the trainer how a parameter is spread over ranks, as Megatron's layers do."""
        whole, cut, dim = (adapter.a, adapter.b, 0) if self.is_column else (adapter.b, adapter.a, 1)
        set_tensor_model_parallel_attributes(cut.weight, True, dim, 1)
        # Each rank sees a part of the sequence: the trainer adds up the gradients at the end of a step.
        whole.weight.sequence_parallel = self.is_sequence_parallel
        for matrix in (whole, cut):
            matrix.weight.allreduce = getattr(weight, "allreduce", True)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found = {name: self._product(adapter, inputs) for name, adapter in self.items()}
        some = next(iter(found.values()))
        none = some.new_zeros(())
        parts = [found.get(name, none.expand(*some.shape[:-1], rows)) for name, rows in self.rows.items()]
        return torch.cat([part.unflatten(-1, (self.blocks, -1)) for part in parts], -1).flatten(-2)

    def _product(self, adapter: Adapter, inputs: torch.Tensor) -> torch.Tensor:
        a, b = adapter.a.weight, adapter.b.weight
        if not self.has_own_exchange:
            # Ranks that share an expert add up partial outputs, and gradients of inputs, in the dispatcher.
            # What both have of the other matrix is a part of its gradient.
            whole = a if self.is_column else b
            summed = copy_to_tensor_model_parallel_region(whole, group=self.tp_group)
            a, b = (summed, b) if self.is_column else (a, summed)
        narrow = self._exchanged(self._narrow(inputs, a))
        return F.linear(narrow, b) * self.scale

    def _narrow(self, inputs: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """Return `A x`; a layer with an activation computes its x from `inputs`."""
        is_dropping = self.training and self.dropout > 0
        if self.activated is not None and not is_dropping:
            return activated_product(self.activated, inputs, None, Linear(), a)
        if self.activated is not None:
            inputs = GatedActivation(self.activated)(inputs)
        if is_dropping:
            with self._generator():
                inputs = F.dropout(inputs, self.dropout)
        return F.linear(inputs, a)

    def _generator(self) -> AbstractContextManager[None]:
        """Return the context in which a mask is drawn: the same mask on ranks with the same input.

        Torch's default generator is not the same on them: only the first one has a data loader, which draws
        its seed from it if the ranks compute on CPU.
        """
        tracker = get_cuda_rng_tracker()
        if self.is_expert:
            names = [get_expert_parallel_rng_tracker_name()]
        elif self.is_column and not self.is_sequence_parallel:
            names = [get_data_parallel_rng_tracker_name()]
        else:
            names = []  # one of its own for each rank
        context: AbstractContextManager[None] = tracker.fork(*names)
        return context

    def _exchanged(self, narrow: torch.Tensor) -> torch.Tensor:
        """Return `A x` as B needs it, `[tokens, rank]`, from what this rank computed of it."""
        if not self.has_own_exchange:
            return narrow
        if self.is_column:
            if self.is_sequence_parallel:
                return gather_from_sequence_parallel_region(narrow, group=self.tp_group)
            return copy_to_tensor_model_parallel_region(narrow, group=self.tp_group)
        if self.is_sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(narrow, group=self.tp_group)
        return reduce_from_tensor_model_parallel_region(narrow, group=self.tp_group)


def add_adapters(joined: Joined, rank: int, scale: float, dropout: float) -> Adapters:
    """Give a linear layer its adapters, as its module `adapters`, and add what they return to its output."""
    made = Adapters(joined, rank, scale, dropout)
    joined.linear.adapters = made
    joined.linear.register_forward_hook(_with_adapters)
    return made


def _with_adapters(linear: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> Any:
    out, bias = output
    return out + linear.adapters(inputs[0]), bias
