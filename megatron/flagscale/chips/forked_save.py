"""`--async-save` on host processors: each save is written by a forked process.

With CUDA the engine's own writer does it: a process of its own, to which the tensors are copied. Its start
names a CUDA device, and what it gets of a tensor on the CPU is no copy: training would change it while it is
written. A fork is the copy, at no cost until training changes a page.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from typing import Any

from megatron.flagscale.patching import Patch
from megatron.flagscale.supervision import die_with_parent


def _write(priority: int, async_fn: Callable[..., Any], *positional: Any, **named: Any) -> None:
    """Write a checkpoint's files in a forked process, on which nothing else depends."""
    import torch
    from megatron.core.dist_checkpointing.strategies.async_utils import _set_process_qos

    # It holds copies of the rank's connections: peers would wait for a rank that is dead.
    die_with_parent()
    # A request to end reaches all processes of a run; the rank waits for its files and then ends.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)  # the threads of OpenMP do not survive a fork; waiting for them has no end
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
        "The worker it starts chooses a CUDA device, dies of it, and the first save waits for it forever.",
        "cpu",
        until="the engine's checkpoint worker runs without CUDA",
    ),
    Patch(
        "megatron.core.dist_checkpointing.strategies.async_utils:AsyncCallsQueue._get_async_caller",
        _forking,
        "The worker above shares the memory of CPU tensors: it would write what training has changed since.",
        "cpu",
        until="as above, and it copies CPU tensors before training goes on",
    ),
)
