"""Storage that autograd keeps: all that a tensor is a part of, however small the part."""

from __future__ import annotations

from collections import Counter

import torch


def compact(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the tensors; those that together use only a part of their storage are copied.

    Call it for tensors that are kept for the backward pass while nothing else needs the rest of the storage.
    If there will be no backward pass, nothing is copied.
    """
    if not torch.is_grad_enabled():
        return tensors
    used: Counter[int] = Counter()
    for tensor in tensors:
        used[tensor.untyped_storage()._cdata] += tensor.nbytes
    return tuple(
        tensor
        if used[storage._cdata] >= storage.nbytes()
        else tensor.clone(memory_format=torch.contiguous_format)
        for tensor, storage in ((tensor, tensor.untyped_storage()) for tensor in tensors)
    )
