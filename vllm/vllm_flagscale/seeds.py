"""Requests with seeds on the host's processors, which vLLM 0.32 does not always survive."""

from __future__ import annotations

import argparse

_CPU_CLASS = "vllm_flagscale.cpu_sampling.SeededSampling"


def survive_seeds(arguments: argparse.Namespace) -> None:
    """Set `worker_cls`, vLLM's seam for this, to our class on CPU, unless the user names a class."""
    from vllm.platforms import current_platform

    if arguments.worker_cls == "auto" and current_platform.is_cpu():
        arguments.worker_cls = _CPU_CLASS
