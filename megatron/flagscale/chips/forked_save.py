"""`--async-save` on host processors: each save is written by a forked process.

With CUDA the engine's own writer does it, a separate process to which the tensors are copied. That process
selects a CUDA device when it starts, and it shares CPU tensors instead of copying them: training would change
them while they are written. A fork is a copy, and it costs nothing until training changes a page.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from typing import Any

from megatron.flagscale.patching import Patch
from megatron.flagscale.supervision import die_with_parent


def _write(priority: int, async_fn: Callable[..., Any], *positional: Any, **named: Any) -> None:
    """Write a checkpoint's files, in a forked process on which nothing else depends."""
    import torch
    from megatron.core.dist_checkpointing.strategies.async_utils import _set_process_qos

    # It holds copies of the rank's connections: if it outlived the rank, peers would wait for a dead rank.
    die_with_parent()
    # A stop request reaches all processes of a run; the rank waits for these files and then ends.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork; waiting for them would hang
    _set_process_qos(cpu_priority=priority, io_priority=None)
    async_fn(*positional, **named)


def _forking(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_async_caller(self: Any) -> Any:
        from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest, TemporalAsyncCaller
        from megatron.training import get_args

        class ForkedWriter(TemporalAsyncCaller):
            def schedule_async_call(self, async_req: AsyncRequest) -> None:
                if async_req.async_fn is not None:
                    write = functools.partial(_write, get_args().async_ckpt_cpu_priority, async_req.async_fn)
                    async_req = async_req._replace(async_fn=write)
                super().schedule_async_call(async_req)

        return ForkedWriter()

    return get_async_caller


PATCHES = (
    Patch(
        "megatron.training.initialize:init_persistent_async_worker",
        lambda original: lambda *positional, **named: None,
        "The worker it starts selects a CUDA device and dies, and the first save waits for it forever.",
        "cpu",
        until="the engine's checkpoint worker runs without CUDA",
    ),
    Patch(
        "megatron.core.dist_checkpointing.strategies.async_utils:AsyncCallsQueue._get_async_caller",
        _forking,
        "The engine's writer shares the memory of CPU tensors: it would write values that training changed.",
        "cpu",
        until="the engine's writer runs without CUDA and copies CPU tensors before training continues",
    ),
)
