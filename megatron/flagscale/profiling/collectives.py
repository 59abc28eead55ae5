"""Collectives by size, among the ranks of one host, over the backend that training uses."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist

from megatron.flagscale.chips import chip
from megatron.flagscale.profiling.clock import Clock

BYTES = tuple(4**power << 10 for power in range(10))
"""1 KiB to 256 MiB."""
_ELEMENT = 4


@functools.cache
def group_of(ranks: int) -> dist.ProcessGroup:
    """Return the group of the first ranks. All ranks have to ask for the same groups in the same order."""
    group: dist.ProcessGroup = dist.new_group(range(ranks), backend=chip().backend)
    return group


def collectives(clock: Clock, kind: str, ranks: int) -> Iterator[list[float]]:
    """Yield [bytes, seconds] of one kind among the first ranks, those of the slowest; small sizes first."""
    group = group_of(ranks)
    takes_part = dist.get_rank() < ranks
    last = 0.0
    for nbytes in BYTES:
        # Gradients are large messages: extrapolating to them would cost more than measuring them.
        if not clock.is_short(last / 4):
            yield []
            continue
        prepare = functools.partial(_call, kind, nbytes, ranks, group) if takes_part else _nothing
        seconds = clock.seconds(prepare, of_ranks=max)
        # A message goes there and back.
        last = seconds / 2 if kind == "send" else seconds
        yield [nbytes, last] if last < math.inf else []


def _nothing() -> Callable[[], object]:
    return lambda: None


def _call(kind: str, nbytes: int, ranks: int, group: dist.ProcessGroup) -> Callable[[], object]:
    """Return the call; the larger of its buffers has `nbytes`, rounded up to whole elements of every rank."""
    device = chip().device()
    each = -(-nbytes // (_ELEMENT * ranks))
    whole, part = (torch.zeros(count, device=device) for count in (each * ranks, each))
    match kind:
        case "all_reduce":
            return lambda: dist.all_reduce(whole, group=group)
        case "all_gather":
            return lambda: dist.all_gather_single(whole, part, group=group)
        case "reduce_scatter":
            return lambda: dist.reduce_scatter_single(part, whole, group=group)
        case "all_to_all":
            target = torch.empty_like(whole)
            return lambda: dist.all_to_all_single(target, whole, group=group)
    return functools.partial(_there_and_back, whole, group)


def _there_and_back(message: torch.Tensor, group: dist.ProcessGroup) -> None:
    if dist.get_rank() == 0:
        dist.send(message, 1, group=group)
        dist.recv(message, 1, group=group)
    else:
        dist.recv(message, 0, group=group)
        dist.send(message, 0, group=group)
