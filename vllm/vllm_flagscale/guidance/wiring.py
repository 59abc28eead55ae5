"""Which arguments of vLLM make an engine guide: its scheduler and its logits processor."""

from __future__ import annotations

import argparse
from typing import Any

from vllm_flagscale.refusal import refused

PROCESSOR = "vllm_flagscale.guidance.processor:GuidedProcessor"
SCHEDULER = f"{__name__}.guided_scheduler"


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--guidance`, which the launcher passes on."""
    parser.add_argument("--guidance", action="store_true", help="answer requests with `guidance_scale`")


def wire(arguments: argparse.Namespace) -> None:
    """Set the engine's own arguments for guidance, if it is asked for; safe to repeat.

    Raises:
        SystemExit: with code 2, if another scheduler is named.
    """
    if not arguments.guidance:
        return
    if arguments.scheduler_cls not in (None, SCHEDULER):
        what = f"--scheduler-cls {arguments.scheduler_cls} cannot be combined with --guidance: remove one"
        raise SystemExit(refused(what))
    arguments.scheduler_cls = SCHEDULER
    given = arguments.logits_processors or []
    arguments.logits_processors = given if PROCESSOR in given else [*given, PROCESSOR]


def guided_scheduler(vllm_config: Any, **more: Any) -> Any:
    """Return the engine's scheduler; vLLM calls this where it would call the class of a scheduler.

    A function, because vLLM decides about asynchronous scheduling only while it makes its configuration, by
    the executor, the platform and the parallel degrees (`config/vllm.py` of 0.32). A scheduler of the wrong
    kind would not be noticed: it would plan steps with tokens that are not there yet.
    """
    from vllm_flagscale.guidance.scheduler import GuidedAsyncScheduler, GuidedScheduler

    is_async = vllm_config.scheduler_config.async_scheduling
    return (GuidedAsyncScheduler if is_async else GuidedScheduler)(vllm_config=vllm_config, **more)
