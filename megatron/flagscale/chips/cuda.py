"""NVIDIA's GPUs through `torch.cuda`: the engine is written for them, so nothing is patched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from megatron.flagscale.chips.chip import AttentionKernels, Chip

_aten = torch.ops.aten
_ALLOCATIONS = 1_000_000
"""Allocations that a record of memory holds at most; then it loses the oldest."""


def _takes(q: torch.Tensor) -> bool:
    half = q.dtype in (torch.float16, torch.bfloat16)
    return q.is_cuda and half and q.size(3) % 8 == 0 and q.size(3) <= 256


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse, *_ = _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)
    return out, lse


def _backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=q.device)
    grads = _aten._scaled_dot_product_flash_attention_backward(
        *(grad, q, k, v, out, lse, None, None, q.size(2), k.size(2), 0.0, causal),
        *(no_dropout, no_dropout),
        scale=scale,
    )
    return grads[0], grads[1], grads[2]


def _record_memory() -> Callable[[Path], None]:
    torch.cuda.memory._record_memory_history(max_entries=_ALLOCATIONS)

    def write(path: Path) -> None:
        torch.cuda.memory._dump_snapshot(str(path))
        torch.cuda.memory._record_memory_history(enabled=None)

    return write


CUDA = Chip(
    name="nvidia",
    backend="nccl",
    set_device=lambda local_rank: torch.cuda.set_device(local_rank),
    device=lambda: torch.device("cuda", torch.cuda.current_device()),
    memory_bytes=lambda: int(torch.cuda.max_memory_allocated()),
    record_memory=_record_memory,
    attention=AttentionKernels(_takes, _attend, _backward),
    sdpa_takes_other_widths=True,
    has_rms_norm=True,
)
