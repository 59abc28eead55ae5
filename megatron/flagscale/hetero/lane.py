"""One direction over one boundary of the pipeline: activations to the next stage, or gradients back."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from flagscale.checks.hetero.routing import Block, Exchange
from megatron.flagscale.chips import HOST, chip


class Arrival:
    """A tensor that was promised: its receives are posted."""

    def __init__(
        self, whole: torch.Tensor, copies: Sequence[tuple[Any, Any]], works: Any, scale: float
    ) -> None:
        self.tensor = whole
        self._copies, self._works, self._scale = copies, works, scale

    def wait(self) -> torch.Tensor:
        """Return the tensor when it is all there."""
        for work in self._works:
            work.wait()
        with torch.no_grad():
            for place, buffer in self._copies:
                place.copy_(buffer.view(place.shape))
            if self._scale != 1.0:
                self.tensor.mul_(self._scale)
        return self.tensor


class Lane:
    """This rank's end of it. Tensors arrive in the order in which they were sent.

    Every lane has a process group of its own: a backend may work off a group's messages in order, and a
    receive that is posted early must hold up nothing else.

    Args:
        in_flight: how many sends may be before the oldest is waited for. With `a` of them on both lanes
            of a boundary no stage waits for the other in a circle while the warm-ups of its stages differ by
            `2 * a + 1` micro-batches at most: the later stage posts a receive one activation ahead, and
            blocks at its gradient `a` until the earlier one, behind its warm-up, has posted for the first.
        scale: what a tensor that arrives is multiplied by.
    """

    def __init__(
        self,
        group: Any,
        exchange: Exchange,
        first_rank: int,
        *,
        via_host: bool,
        in_flight: int,
        scale: float = 1.0,
    ) -> None:
        self.group, self.exchange, self.first_rank = group, exchange, first_rank
        self.via_host, self.in_flight, self.scale = via_host, in_flight, scale
        # Their buffers must live until they have arrived.
        self._sent: deque[tuple[Any, list[torch.Tensor]]] = deque()

    def send(self, tensor: torch.Tensor) -> None:
        """Post what this rank sends of an activation `[s, b, h]`; it is on its way when this returns."""
        while len(self._sent) >= self.in_flight:
            for work in self._sent.popleft()[0]:
                work.wait()
        whole = tensor.detach()
        buffers = []
        for message in self.exchange.messages:
            parts = [_cut(whole, self.exchange, block) for block in message.blocks]
            buffers.append(parts[0] if self._travels(parts) else self._packed(parts))
        self._sent.append((self._post(dist.isend, buffers), buffers))

    def expect(self, shape: Sequence[int], dtype: torch.dtype) -> Arrival:
        """Post the receives for the next tensor of this lane."""
        whole = torch.empty(tuple(shape), dtype=dtype, device=chip().device())
        buffers: list[torch.Tensor] = []
        copies: list[tuple[Any, Any]] = []
        for message in self.exchange.messages:
            parts = [_cut(whole, self.exchange, block) for block in message.blocks]
            if self._travels(parts):
                buffers.append(parts[0])
                continue
            buffer = self._staging(parts)
            buffers.append(buffer)
            copies += zip(parts, buffer.split([part.numel() for part in parts]), strict=True)
        works = self._post(dist.irecv, buffers)
        return Arrival(whole.requires_grad_(), copies, works, self.scale)

    def _post(self, operation: Any, buffers: Sequence[torch.Tensor]) -> Any:
        peers = (self.first_rank + message.peer for message in self.exchange.messages)
        operations = [
            dist.P2POp(operation, buffer, peer, self.group)
            for buffer, peer in zip(buffers, peers, strict=True)
        ]
        return dist.batch_isend_irecv(operations) if operations else []

    def _travels(self, parts: Sequence[torch.Tensor]) -> bool:
        """Whether a message can go from, or come to, the tensor itself."""
        return len(parts) == 1 and parts[0].is_contiguous() and not self.via_host

    def _packed(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        buffer = self._staging(parts)
        for part, place in zip(parts, buffer.split([part.numel() for part in parts]), strict=True):
            place.view(part.shape).copy_(part)
        return buffer

    def _staging(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.empty(
            sum(part.numel() for part in parts),
            dtype=parts[0].dtype,
            device=HOST if self.via_host else parts[0].device,
            pin_memory=self.via_host and chip().pins_memory,
        )


def _cut(whole: torch.Tensor, exchange: Exchange, block: Block) -> torch.Tensor:
    """Return the view of a block of an activation `[s, b, h]`."""
    long, wide = whole.size(0) // exchange.sequence, whole.size(1) // exchange.batch
    (s0, s1), (b0, b1) = block.sequence, block.batch
    return whole[s0 * long : s1 * long, b0 * wide : b1 * wide]
