"""Platforms describe chips as data: the number of devices on a host, the environment of processes.

A package adds a platform through the entry-point group `flagscale.platforms` and, for training, a chip of the
same name through `flagscale.chips` (megatron/flagscale/chips/chip.py). `runner.platform` and `type=` in the
hostfile select it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from flagscale import registry


@dataclass(frozen=True)
class Platform:
    """One kind of chip. `count_devices` returns how many devices of this host a process may use, given its
    environment; 0 if there are none.
    """

    name: str
    count_devices: Callable[[Mapping[str, str]], int]
    env: Mapping[str, str] = field(default_factory=dict)
    """Set for every process unless the experiment sets it."""
    rank_env: Mapping[str, str] = field(default_factory=dict)
    """The same, for ranks only: needed for collectives and the order of kernels, not by other programs."""
    kubernetes_resource: str = ""
    """The name under which Kubernetes counts these devices."""
    visible_devices: str = ""
    """The environment variable that limits a process to some devices of a host."""
    shares_devices: bool = False
    """Whether several ranks may share a device."""
    is_host_processor: bool = False
    """Whether ranks compute on the host's CPUs: without CUDA kernels, and with vLLM's CPU backend."""
    count_users: Callable[[], int] = lambda: 0
    """Returns how many processes currently use devices of this host."""
    chips: tuple[str, ...] = ()
    """Models of the chip in capitals. They also name the platform in a hostfile, with or without a size:
    `type=A100`, `type=A100-80`."""

    def has_model(self, name: str) -> bool:
        """Return whether a name is that of a model, in any case, or continues one with `-` and a digit."""
        written = name.upper()
        return any(re.fullmatch(rf"{re.escape(chip)}(-\d.*)?", written) for chip in self.chips)


BUILT_IN = {
    "cpu": "flagscale.platforms.cpu:CPU",
    "nvidia": "flagscale.platforms.nvidia:NVIDIA",
}
"""FlagScale's own platforms; packages add others through the entry-point group `flagscale.platforms`."""

_takes_any: ContextVar[bool] = ContextVar("takes_any", default=False)


@contextmanager
def any_platform() -> Iterator[None]:
    """Within it, every name is that of a platform: for jobs that are estimated, which nobody starts.

    An estimate needs only a chip's figures, not the package that could use the chip.
    """
    token = _takes_any.set(True)
    try:
        yield
    finally:
        _takes_any.reset(token)


def names() -> Iterable[str]:
    """Return the names of all platforms that are installed."""
    return registry.names("platforms", BUILT_IN)


def find(name: str, where: str = "experiment.runner.platform") -> Platform:
    """Return a platform by its name or a chip's; `auto` is the first with devices on this host, else `cpu`.

    Raises:
        UserError: the platform is unknown.
    """
    known = names()
    if name in known:
        return _load(name, where)
    others: Iterator[Platform] = registry.load_each(
        "platforms", (other for other in known if other != "cpu"), BUILT_IN
    )
    if name == "auto":
        found = (platform for platform in others if platform.count_devices(os.environ))
        return next(found, None) or _load("cpu")
    for platform in others:
        if platform.has_model(name):
            return platform
    if _takes_any.get():
        return Platform(name, count_devices=lambda environ: 0)
    return _load(name, where)


def has_chip(platform: Platform) -> bool:
    """Return whether the worker's half of a platform is installed, so that its ranks can train.

    A chip has the name of its platform, FlagScale's own too. Only the names are read: a chip needs torch.
    """
    return platform.name in registry.names("chips", BUILT_IN) or _takes_any.get()


def _load(name: str, where: str = "") -> Platform:
    platform: Platform = registry.load("platforms", name, where, BUILT_IN)
    return platform
