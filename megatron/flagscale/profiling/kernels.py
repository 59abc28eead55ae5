"""The kernels of one rank: products, grouped products, attention, copies, the smallest kernel.

Every function yields rows in the form of `flagscale.planner.curves`, the smallest sizes first, and an empty
row for each size that would take too long.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F

from flagscale.planner.curves import attention_flop
from megatron.flagscale.chips import chip
from megatron.flagscale.profiling.clock import Clock

Row = list[float]

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "fp8": torch.float8_e4m3fn,
}
SIZES = (64, 256, 1024, 4096, 16384)
"""Of each dimension of a product: what tokens, widths and their shards are in small and large models."""
GROUPS, GROUPED_ROWS, GROUPED_WIDTHS = (4, 16), (64, 512, 4096), (256, 1024, 4096)
SEQUENCES, HEADS, WIDTHS = (128, 512, 2048, 8192, 32768), (4, 16), (32, 128)


def products(clock: Clock, precision: str) -> Iterator[Row]:
    """Yield [m, n, k, seconds] of the product that a linear layer is."""
    shapes = itertools.product(SIZES, repeat=3)
    yield from _rows(clock, shapes, lambda *sizes: 2 * math.prod(sizes), partial(_product, precision))


def grouped(clock: Clock, precision: str) -> Iterator[Row]:
    """Yield [groups, m, n, k, seconds] of the product of all experts in one kernel, with equal shares."""
    shapes = itertools.product(GROUPS, GROUPED_ROWS, GROUPED_WIDTHS, GROUPED_WIDTHS)
    yield from _rows(clock, shapes, lambda *sizes: 2 * math.prod(sizes), partial(_grouped, precision))


def attention(clock: Clock, precision: str) -> Iterator[Row]:
    """Yield [sequence, heads, width, forward seconds, backward seconds] of causal attention."""
    shapes = itertools.product(SEQUENCES, HEADS, WIDTHS)

    def both(sequence: int, heads: int, width: int) -> float:
        return attention_flop(sequence, heads, width) + attention_flop(sequence, heads, width, True)

    rows = _rows(clock, shapes, both, partial(_attention, precision))
    for row in rows:
        if not row:
            yield row
            continue
        sequence, heads, width, together = row
        sizes = int(sequence), int(heads), int(width)
        forward = clock.seconds(partial(_attention, precision, *sizes, is_trained=False))
        yield [*sizes, forward, max(together - forward, together / 10)]


def copied_bytes_s(clock: Clock, nbytes: int) -> float:
    """Return the bandwidth of the chip's memory in bytes per second, of reading and writing together."""
    source = torch.zeros(nbytes, dtype=torch.uint8, device=chip().device())
    target = torch.empty_like(source)
    return 2 * nbytes / clock.seconds(lambda: lambda: target.copy_(source))


def launch_s(clock: Clock) -> float:
    """Return the seconds of the smallest kernel when many follow each other."""
    one = torch.zeros(1, device=chip().device())
    return clock.seconds(lambda: lambda: one.add_(1.0))


def _rows(
    clock: Clock,
    shapes: Iterable[tuple[int, ...]],
    flop: Callable[..., float],
    prepare: Callable[..., Callable[[], object]],
) -> Iterator[Row]:
    """Yield sizes and seconds, from few operations to many, as long as the rate so far lets them be short."""
    best = 0.0
    for sizes in sorted(shapes, key=lambda one: flop(*one)):
        work = flop(*sizes)
        seconds = math.inf
        if not best or clock.is_short(work / best):
            seconds = clock.seconds(partial(prepare, *sizes))
        best = max(best, work / seconds)
        yield [*sizes, seconds] if seconds < math.inf else []


def _product(precision: str, m: int, n: int, k: int) -> Callable[[], object]:
    rows, weight = _tensor(precision, m, k), _tensor(precision, n, k)
    if precision != "fp8":
        return lambda: F.linear(rows, weight)
    scale = torch.ones((), device=rows.device)
    scaled = {"scale_a": scale, "scale_b": scale, "out_dtype": torch.bfloat16}
    return lambda: torch._scaled_mm(rows, weight.t(), **scaled)


def _grouped(precision: str, groups: int, m: int, n: int, k: int) -> Callable[[], object]:
    rows, weights = _tensor(precision, groups * m, k), _tensor(precision, groups, n, k).transpose(1, 2)
    ends = torch.arange(m, groups * m + 1, m, dtype=torch.int32, device=rows.device)
    return lambda: F.grouped_mm(rows, weights, offs=ends)


def _attention(
    precision: str, sequence: int, heads: int, width: int, is_trained: bool = True
) -> Callable[[], object]:
    q, k, v, grad = (_tensor(precision, 1, heads, sequence, width) for _ in range(4))
    for one in (q, k, v):
        one.requires_grad_(is_trained)

    def attend() -> object:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.autograd.grad(out, (q, k, v), grad) if is_trained else out

    return attend


def _tensor(precision: str, *sizes: int) -> torch.Tensor:
    # Not zeros: a chip draws less power and runs faster on them.
    made = torch.empty(sizes, device=chip().device(), dtype=torch.bfloat16).uniform_(-1, 1)
    return made.to(DTYPES[precision])
