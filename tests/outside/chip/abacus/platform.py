"""The abacus as the launcher sees it. It computes on the host's processors; each rank has its own device."""

from collections.abc import Mapping
from dataclasses import replace

from flagscale.platforms.cpu import CPU

VISIBLE = "ABACUS_VISIBLE_DEVICES"


def count(environ: Mapping[str, str]) -> int:
    """Return the number of devices that a process with this environment may use."""
    visible = environ.get(VISIBLE)
    return 4 if visible is None else len(visible.split(","))


ABACUS = replace(
    CPU,
    name="abacus",
    count_devices=count,
    visible_devices=VISIBLE,
    shares_devices=False,
    chips=("SUANPAN",),
)
