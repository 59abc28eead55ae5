"""One rank of a job whose other ranks do not exist: process groups of the real sizes, without processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

META = torch.device("meta")
"""Tensors on it have shapes but no memory."""


@contextmanager
def one_rank(world_size: int, rank: int = 0, **degrees: Any) -> Iterator[None]:
    """Run as one rank of a job with these parallel degrees, as `initialize_model_parallel` takes them."""
    from megatron.flagscale.bootstrap import patch_engine

    patch_engine()
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        parallel_state.initialize_model_parallel(create_gloo_process_groups=False, **degrees)
        model_parallel_cuda_manual_seed(1)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


@contextmanager
def creating_on(device: torch.device) -> Iterator[None]:
    """Make the engine create its tensors on a device."""
    with mock.patch.object(torch.cuda, "current_device", return_value=device):
        yield
