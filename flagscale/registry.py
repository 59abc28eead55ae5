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
"""What FlagScale brings itself. A third party adds to it by the entry-point group `flagscale.<kind>`.

Platforms and chips are listed by their own packages, the only places that name hardware.
"""


def names(kind: str, built_in: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return every known name of a kind with its "module:attribute"; built-in names cannot be replaced.

    `built_in`: FlagScale's own, if the package of that kind lists them.
    """
    added = {point.name: point.value for point in entry_points(group=f"flagscale.{kind}")}
    return {**added, **(BUILT_IN[kind] if built_in is None else built_in)}


def is_known(kind: str, name: str) -> bool:
    """Whether `name` is registered; installed packages are searched only if it is not built in."""
    return name in BUILT_IN[kind] or name in names(kind)


def load(kind: str, name: str, where: str = "", built_in: Mapping[str, str] | None = None) -> Any:
    """Import and return the object registered as `name`; `UserError` with the nearest name if none is."""
    target = (BUILT_IN[kind] if built_in is None else built_in).get(name)
    target = target or names(kind, built_in).get(name)
    if target is None:
        hint = nearest(name, names(kind, built_in))
        raise UserError([Problem(f"unknown {kind[:-1]} `{name}`", where, hint)])
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
