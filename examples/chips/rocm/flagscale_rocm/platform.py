"""AMD GPUs as the launcher sees them, counted without loading ROCm.

Sources: "GPU isolation techniques" and "ROCm environment variables" (ROCm documentation) for the visibility
variables; "Running ROCm Docker containers" (ROCm documentation) for the device files; the KFD topology and
process folders of the Linux driver amdgpu, which `rocminfo` and `rocm-smi` read too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from flagscale.platforms import Platform

KFD = Path("/sys/class/kfd/kfd")
DEVICES = Path("/dev")
VISIBLE = "ROCR_VISIBLE_DEVICES"
"""The recommended variable on Linux: the runtime below HIP reads it, so it works for every program."""
HIP_VISIBLE = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
"""Two names for one list, which HIP applies to the devices that `VISIBLE` leaves."""


def count_gpus(environ: Mapping[str, str], kfd: Path = KFD, devices: Path = DEVICES) -> int:
    """Return how many GPUs a process with this environment may use: those present minus the hidden ones."""
    count = len(render_nodes(kfd, devices))
    hip = next((name for name in HIP_VISIBLE if name in environ), "")
    for name in (VISIBLE, hip):
        if name in environ:
            count = _shown(environ[name].split(","), count)
    return count


def _shown(names: Sequence[str], present: int) -> int:
    """Return how many of the present devices a list makes visible: it ends at the first invalid entry.

    An entry is an index, or a UUID (`GPU-...`), which is assumed to be that of an existing device.
    """
    shown = 0
    for name in map(str.strip, names):
        is_device = name.startswith("GPU-") or (name.isdigit() and int(name) < present)
        if not is_device:
            break
        shown += 1
    return min(shown, present)


def render_nodes(kfd: Path, devices: Path) -> list[int]:
    """Return the numbers N of the render nodes (`/dev/dri/renderDN`) of the GPUs that this process may open.

    The topology lists every node of the machine, including processors (no SIMD units); a container may open
    only those GPUs whose render node it was given.
    """
    if not (devices / "kfd").exists():
        return []
    found = []
    for properties in kfd.glob("topology/nodes/*/properties"):
        with suppress(OSError):  # the driver refuses to show a GPU that the container was not given
            minor = gpu_of(properties.read_text(encoding="ascii"))
            if minor is not None and (devices / "dri" / f"renderD{minor}").exists():
                found.append(minor)
    return sorted(found)


def gpu_of(properties: str) -> int | None:
    """Return the number of a node's render node from its properties (lines `name value`); None if no GPU."""
    values = dict(line.split(maxsplit=1) for line in properties.splitlines() if " " in line.strip())
    if int(values.get("simd_count", 0)) == 0:
        return None
    return int(values.get("drm_render_minor", 0)) or None


def count_gpu_users(kfd: Path = KFD) -> int:
    """Return how many processes use GPUs now: the driver has a folder for each that opened /dev/kfd."""
    return sum(1 for process in kfd.glob("proc/*") if process.name.isdigit())


_CHIPS = (
    *("MI50", "MI60", "MI100", "MI210", "MI250", "MI250X"),
    *("MI300A", "MI300X", "MI308X", "MI325X", "MI350X", "MI355X"),
)

ROCM = Platform(
    name="rocm",
    count_devices=count_gpus,
    count_users=count_gpu_users,
    visible_devices=VISIBLE,
    chips=_CHIPS,
)
