"""An engine on CPU that plans each step while the one before it is in flight.

vLLM 0.32 turns asynchronous scheduling off on CPU, whatever its argument says (`platforms/cpu.py`). Here it
is turned on again after the worker was made and before the scheduler is. The engine then keeps two steps in
its queue: the second is planned before the scheduler knows the tokens of the first. The worker computes as
without it, so this tests the scheduler with a real model, but not the worker's part.
"""

from __future__ import annotations

from typing import Any


def scheduler(is_async: bool) -> str:
    """Return the value of `scheduler_cls` for an engine that guides."""
    from vllm_flagscale.guidance.wiring import SCHEDULER

    return f"{__name__}.scheduler_ahead" if is_async else SCHEDULER


def scheduler_ahead(vllm_config: Any, **more: Any) -> Any:
    """Return the engine's scheduler with guidance, as on a platform with asynchronous scheduling."""
    from vllm_flagscale.guidance.wiring import guided_scheduler

    assert not vllm_config.scheduler_config.async_scheduling, "this platform schedules asynchronously itself"
    vllm_config.scheduler_config.async_scheduling = True
    return guided_scheduler(vllm_config=vllm_config, **more)
