"""The class of an engine's workers: ours on the host's processors."""

from __future__ import annotations

import argparse

_CPU = "vllm_flagscale.cpu_worker.CPUWorker"


def choose_worker(arguments: argparse.Namespace) -> None:
    """Set `worker_cls` to FlagScale's class on CPU, unless the user names one."""
    from vllm.platforms import current_platform

    if arguments.worker_cls == "auto" and current_platform.is_cpu():
        arguments.worker_cls = _CPU
