"""Which arguments of vLLM make an engine guide: its scheduler and its logits processor."""

from __future__ import annotations

import argparse

PROCESSOR = "vllm_flagscale.guidance.processor:GuidedProcessor"
ASYNC_SCHEDULER = "vllm_flagscale.guidance.scheduler.GuidedAsyncScheduler"
SCHEDULER = "vllm_flagscale.guidance.scheduler.GuidedScheduler"


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--guidance`, which the launcher passes on."""
    parser.add_argument("--guidance", action="store_true", help="answer requests with `guidance_scale`")


def wire(arguments: argparse.Namespace) -> None:
    """Set the engine's own arguments for guidance, if it is asked for."""
    if arguments.guidance:
        is_async = arguments.async_scheduling is not False
        arguments.scheduler_cls = ASYNC_SCHEDULER if is_async else SCHEDULER
        arguments.logits_processors = [*(arguments.logits_processors or ()), PROCESSOR]
