"""NVIDIA GPUs, counted without loading CUDA."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

from flagscale.platforms import Platform


def count_gpus(environ: Mapping[str, str], devices: Path = Path("/dev")) -> int:
    """Return how many GPUs a process with this environment may use: all that are present and not hidden."""
    present = sum(1 for node in devices.glob("nvidia[0-9]*") if node.name.removeprefix("nvidia").isdigit())
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    # CUDA reads the list up to the first entry that is not a device.
    names = takewhile(lambda name: name and not name.startswith("-"), map(str.strip, visible.split(",")))
    return min(present, sum(1 for _ in names))


def count_gpu_users() -> int:
    """Return how many processes currently compute on a GPU; 0 if the driver's tool is missing."""
    if shutil.which("nvidia-smi") is None:
        return 0
    asked = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"]
    reported = subprocess.run(asked, capture_output=True, text=True, check=False)
    return len(reported.stdout.split()) if reported.returncode == 0 else 0


_CHIPS = (
    *("V100", "T4", "A10", "A30", "A40", "A100", "A800", "L4", "L20", "L40", "L40S"),
    *("H20", "H100", "H200", "H800", "GH-96", "GH200", "B100", "B200", "B300", "GB200", "GB300"),
    *("RTX-2080", "TITAN-RTX", "RTX-3090", "RTX4090", "RTX5090"),
)

NVIDIA = Platform(
    name="nvidia",
    count_devices=count_gpus,
    # Sequence and tensor parallelism rely on kernels starting in the order in which they were issued.
    rank_env={"CUDA_DEVICE_MAX_CONNECTIONS": "1"},
    count_users=count_gpu_users,
    kubernetes_resource="nvidia.com/gpu",
    visible_devices="CUDA_VISIBLE_DEVICES",
    chips=_CHIPS,
)
