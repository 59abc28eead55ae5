"""NVIDIA GPUs, counted without loading CUDA."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from flagscale.platforms import Platform


def count_gpus(devices: Path = Path("/dev"), environ: Mapping[str, str] = os.environ) -> int:
    """Return the GPUs that this process may use: `/dev/nvidia<N>`, cut down by CUDA_VISIBLE_DEVICES."""
    present = sum(1 for node in devices.glob("nvidia[0-9]*") if node.name.removeprefix("nvidia").isdigit())
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return min(present, len([name for name in visible.split(",") if name.strip()]))


NVIDIA = Platform(
    name="nvidia",
    count_devices=count_gpus,
    # Sequence and tensor parallelism rely on kernels starting in the order they were issued.
    env={"CUDA_DEVICE_MAX_CONNECTIONS": "1"},
)
