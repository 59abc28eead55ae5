"""Gather parts of different sizes, which the engine needs and gloo does not support."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from megatron.flagscale.patching import Patch


def _gather_padded(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(original)
    def gather(
        part: torch.Tensor,
        group: torch.distributed.ProcessGroup,
        output_split_sizes: Sequence[int] | None = None,
        use_global_buffer: bool = False,
    ) -> torch.Tensor:
        if output_split_sizes is None:
            return original(part, group, None, use_global_buffer)
        longest = max(output_split_sizes)
        padded = F.pad(part, (0, 0) * (part.dim() - 1) + (0, longest - part.size(0)))
        parts = original(padded, group).unflatten(0, (len(output_split_sizes), longest))
        return torch.cat([rows[:size] for rows, size in zip(parts, output_split_sizes, strict=True)])

    return gather


PATCHES = (
    Patch(
        "megatron.core.tensor_parallel.mappings:_gather_along_first_dim",
        _gather_padded,
        "Experts split over a tensor parallel group gather a different number of tokens from each rank, but "
        "gloo gathers only parts of equal size.",
        "cpu",
        until="gloo gathers parts of different sizes",
    ),
)
