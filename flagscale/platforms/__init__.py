"""A chip as data: how many devices a host has and what its processes need in the environment.

A third party adds one by the entry-point group `flagscale.platforms`; the hostfile's `type=` names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flagscale import registry


@dataclass(frozen=True)
class Platform:
    """One kind of chip. `count_devices` looks at the host it is called on and returns 0 where there is none."""

    name: str
    count_devices: Callable[[], int]
    env: Mapping[str, str] = field(default_factory=dict)
    """Set for every process unless the experiment sets it."""
    shares_devices: bool = False
    """Whether several ranks may share a device (host processors)."""


def find(name: str, where: str = "experiment.runner.platform") -> Platform:
    """Return the platform `name`; `auto` is the first one that has devices on this host, else `cpu`."""
    if name != "auto":
        platform: Platform = registry.load("platforms", name, where)
        return platform
    candidates = (registry.load("platforms", other) for other in registry.names("platforms") if other != "cpu")
    return next((platform for platform in candidates if platform.count_devices()), find("cpu"))
