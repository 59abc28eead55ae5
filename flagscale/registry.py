"""Name -> "module:attribute" tables, extended by entry points; nothing is imported before it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from flagscale.errors import Problem, UserError, nearest

BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "actions": {
        "run": "flagscale.actions:run",
        "test": "flagscale.actions:test",
        "dryrun": "flagscale.actions:dryrun",
        "check": "flagscale.actions:check",
        "query": "flagscale.actions:query",
        "logs": "flagscale.actions:logs",
        "stop": "flagscale.actions:stop",
    },
    "engines": {
        "megatron": "flagscale.engines.megatron.adapter:MEGATRON",
        "vllm": "flagscale.engines.vllm.adapter:VLLM",
    },
    "platforms": {
        "cpu": "flagscale.platforms.cpu:CPU",
        "nvidia": "flagscale.platforms.nvidia:NVIDIA",
    },
    "runners": {
        "cloud": "flagscale.runners.cloud:CLOUD",
        "ssh": "flagscale.runners.ssh:SSH",
    },
    "transports": {
        "local": "flagscale.remote.transport:LocalTransport",
        "ssh": "flagscale.remote.ssh:SshTransport",
    },
    # Only the names are used: those that vLLM knows itself are in its catalog.
    "vllm_architectures": {},
}
"""What FlagScale brings itself. A third party adds to it by the entry-point group `flagscale.<kind>`."""


def names(kind: str) -> dict[str, str]:
    """Return every known name of a kind with its "module:attribute"; built-in names cannot be replaced."""
    added = {point.name: point.value for point in entry_points(group=f"flagscale.{kind}")}
    return {**added, **BUILT_IN[kind]}


def is_known(kind: str, name: str) -> bool:
    """Whether `name` is registered; installed packages are searched only if it is not built in."""
    return name in BUILT_IN[kind] or name in names(kind)


def load(kind: str, name: str, where: str = "") -> Any:
    """Import and return the object registered as `name`; `UserError` with the nearest name if none is."""
    target = BUILT_IN[kind].get(name) or names(kind).get(name)
    if target is None:
        raise UserError([Problem(f"unknown {kind[:-1]} `{name}`", where, nearest(name, names(kind)))])
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
