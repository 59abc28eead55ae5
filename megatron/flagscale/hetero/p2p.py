"""Replaces Megatron's `P2PCommunicator`: serves its pipeline schedules between stages of unequal meshes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.num_microbatches_calculator import get_num_microbatches

from flagscale.checks.hetero.layout import Stage
from flagscale.checks.hetero.routing import Exchange, receives, sends, side_of
from megatron.flagscale.chips import HOST_BACKEND
from megatron.flagscale.hetero.arguments import OwnPart
from megatron.flagscale.hetero.groups import timeout_of
from megatron.flagscale.hetero.lane import Arrival, Lane

_IN_FLIGHT = 2
"""The number of sends that may be in flight; the receiver has posted a receive for at least one."""


class Inbox:
    """Receives the tensors of a lane for a schedule.

    Without interleaving, a schedule asks for a tensor only when it needs it. In training the number of
    tensors per step is known, so with `ahead` the next receive is posted whenever a tensor is returned: the
    next tensor travels while the stage computes.
    """

    def __init__(self, lane: Lane, ahead: bool) -> None:
        self._lane, self._ahead = lane, ahead
        self._next: Arrival | None = None
        self._taken = 0

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Wait for the next tensor of this step, and return it."""
        arrival = self._next or self._lane.expect(shape, dtype)
        self._next = None
        tensor = arrival.wait()
        if (
            self._ahead and torch.is_grad_enabled()
        ):  # an evaluation may use other shapes and another number of micro-batches
            self._taken = (self._taken + 1) % get_num_microbatches()
            if self._taken:
                self._next = self._lane.expect(shape, dtype)
        return tensor


class Communicator:
    """One rank's ends of all lanes; shapes are this rank's own.

    Gradients from the next stage are multiplied by a weight: each mesh averages over its own data and context
    parallel ranks, so the sum of a sample's gradients must be rescaled at each boundary.
    """

    def __init__(self, part: OwnPart, config: Any, args: Any) -> None:
        layout = part.layout
        stage = layout.position(part.rank).stage
        self.config = config
        self.pp_group = parallel_state.get_pipeline_model_parallel_group()
        self.virtual_pipeline_model_parallel_size = layout.chunks if layout.chunks > 1 else None
        self.total_stages = len(layout.stages)
        # The schedule uses it only to compute its warm-up: `total_stages - current_stage - 1` micro-batches.
        self.current_stage = self.total_stages - 1 - layout.warm_ups[stage]
        self.is_pp_first_stage = stage == 0
        self.is_pp_last_stage = stage == self.total_stages - 1
        timeout = timeout_of(args)
        ahead = layout.chunks == 1
        for source, target in layout.boundaries:
            via_host = layout.cpu_communication and source.mesh != target.mesh
            ahead_by = layout.extra_micro_batches if source.mesh != target.mesh else 0
            how: dict[str, Any] = {"via_host": via_host, "in_flight": _IN_FLIGHT + ahead_by}
            backend = HOST_BACKEND if via_host else args.distributed_backend
            # All ranks must call `new_group`, but only those of the two stages are members.
            forth, back = (
                dist.new_group([*source.ranks, *target.ranks], timeout=timeout, backend=backend)
                for _ in range(2)
            )
            if stage == source.index:
                out, into = _exchanges(part, source, target)
                weight = 1.0
                if not config.calculate_per_token_loss:
                    weight = source.dp * source.cp / (target.dp * target.cp)
                self._to_next = Lane(forth, out, target.first_rank, **how)
                self._from_next = Lane(back, into, target.first_rank, **how, scale=weight)
                self._gradients = Inbox(self._from_next, ahead)
            if stage == target.index:
                out, into = _exchanges(part, target, source)
                self._to_previous = Lane(back, out, source.first_rank, **how)
                self._from_previous = Lane(forth, into, source.first_rank, **how)
                self._activations = Inbox(self._from_previous, ahead)

    # Without interleaving. Values and shapes may be single or in a list; outside the pipeline they are None.

    def recv_forward(self, tensor_shapes: Any, is_first_stage: bool) -> Any:
        """Receive activations from the previous stage."""
        if is_first_stage:
            return _each(tensor_shapes, lambda shape: None)
        return _each(tensor_shapes, lambda shape: self._activations.take(shape, self.config.pipeline_dtype))

    def recv_backward(self, tensor_shapes: Any, is_last_stage: bool) -> Any:
        """Receive gradients from the next stage."""
        if is_last_stage:
            return _each(tensor_shapes, lambda shape: None)
        return _each(tensor_shapes, lambda shape: self._gradients.take(shape, self.config.pipeline_dtype))

    def send_forward(self, output_tensors: Any, is_last_stage: bool) -> None:
        """Send activations to the next stage."""
        if not is_last_stage:
            _each(output_tensors, self._to_next.send)

    def send_backward(self, input_tensor_grads: Any, is_first_stage: bool) -> None:
        """Send gradients to the previous stage."""
        if not is_first_stage:
            _each(input_tensor_grads, self._to_previous.send)

    def send_forward_recv_backward(self, output_tensors: Any, tensor_shapes: Any, is_last_stage: bool) -> Any:
        """Send activations to the next stage and receive gradients from it."""
        self.send_forward(output_tensors, is_last_stage)
        return self.recv_backward(_like(output_tensors, tensor_shapes), is_last_stage)

    def send_backward_recv_forward(
        self, input_tensor_grads: Any, tensor_shapes: Any, is_first_stage: bool
    ) -> Any:
        """Send gradients to the previous stage and receive activations from it."""
        self.send_backward(input_tensor_grads, is_first_stage)
        return self.recv_forward(_like(input_tensor_grads, tensor_shapes), is_first_stage)

    # Interleaved: the schedule itself posts early and waits for handles. Sends have no handle, because the
    # lane keeps track of those in flight.

    def send_forward_recv_forward(
        self,
        output_tensor: torch.Tensor | None,
        recv_prev: bool,
        tensor_shape: Sequence[int],
        overlap_p2p_comm: bool = False,
    ) -> Any:
        """Send activations to the next stage and receive some from the previous stage."""
        arrival = self._expect(self._from_previous, recv_prev, tensor_shape)
        if output_tensor is not None:
            self._to_next.send(output_tensor)
        return _received("recv_prev", arrival, overlap_p2p_comm)

    def send_backward_recv_backward(
        self,
        input_tensor_grad: torch.Tensor | None,
        recv_next: bool,
        tensor_shape: Sequence[int],
        overlap_p2p_comm: bool = False,
    ) -> Any:
        """Send gradients to the previous stage and receive some from the next stage."""
        arrival = self._expect(self._from_next, recv_next, tensor_shape)
        if input_tensor_grad is not None:
            self._to_previous.send(input_tensor_grad)
        return _received("recv_next", arrival, overlap_p2p_comm)

    def send_forward_backward_recv_forward_backward(
        self,
        output_tensor: torch.Tensor | None,
        input_tensor_grad: torch.Tensor | None,
        recv_prev: bool,
        recv_next: bool,
        tensor_shape: Sequence[int],
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Send and receive in both directions."""
        activations = self._expect(self._from_previous, recv_prev, tensor_shape)
        gradients = self._expect(self._from_next, recv_next, tensor_shape)
        if output_tensor is not None:
            self._to_next.send(output_tensor)
        if input_tensor_grad is not None:
            self._to_previous.send(input_tensor_grad)
        return activations and activations.wait(), gradients and gradients.wait()

    def _expect(self, lane: Lane, is_asked: bool, shape: Sequence[int]) -> Arrival | None:
        return lane.expect(shape, self.config.pipeline_dtype) if is_asked else None


def _received(name: str, arrival: Arrival | None, later: bool) -> Any:
    """Return the tensor; with `later`, the tensor that has not arrived yet and the handle to wait for."""
    if not later:
        return arrival and arrival.wait()
    handles: Mapping[str, Arrival] = {name: arrival} if arrival else {}
    return arrival and arrival.tensor, handles


def _each(values: Any, do: Any) -> Any:
    """Apply `do` to one value or to each of a list; a list of integers is a shape, that is, one value."""
    is_many = isinstance(values, list) and not all(isinstance(value, int) for value in values)
    return [do(value) for value in values] if is_many else do(values)


def _like(tensors: Any, shapes: Any) -> Any:
    """Return the shapes in the form of the tensors: a single one or a list."""
    is_many = isinstance(shapes, list) and not isinstance(shapes[0], int)
    return shapes[0] if is_many and not isinstance(tensors, list) else shapes


def _exchanges(part: OwnPart, own: Stage, other: Stage) -> tuple[Exchange, Exchange]:
    """Return the messages that this rank, of stage `own`, sends to stage `other` and receives from it."""
    mine, its = (side_of(part.layout, stage, part.sequence_parallel) for stage in (own, other))
    index = part.rank - own.first_rank
    return sends(mine, its, index), receives(mine, its, index)
