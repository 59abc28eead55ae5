"""The ledger: every place where the engine (or torch under it) is changed in memory, and why.

A change is the last resort, after the engine's own seams. Each entry names its target, the reason, the
versions it was written for and when it can go; applying it fails loudly when the target is gone.

Groups: `cpu` (host processors; another chip names a group of its own), `no-te` (neither TransformerEngine nor
Apex installed), `wheel` (the engine comes from its wheel), `worker` (FlagScale's own metrics and checkpoint
rules; always), `hetero` (a pipeline over unequal meshes; applied where one is built).
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from packaging.requirements import Requirement

ENGINE = "megatron-core>=0.19.2,<0.20"
TORCH = "torch>=2.13,<2.14"


class PatchError(Exception):
    """A ledger entry does not fit what is installed: its target is gone or the version is another one."""


@dataclass(frozen=True)
class Patch:
    """One change: `make` turns the original at `target` ("module:attribute.path") into its replacement."""

    target: str
    make: Callable[[Any], Any]
    why: str
    group: str
    upstream: str = ENGINE
    until: str = "the engine has a seam for it"

    def apply(self) -> None:
        """Replace the target; `PatchError` when it does not exist or the installed version is another one."""
        owner, name = self._resolve()
        setattr(owner, name, self.make(inspect.getattr_static(owner, name)))

    def check(self) -> None:
        """Raise `PatchError` unless the patch fits what is installed; changes nothing."""
        self._resolve()

    def _resolve(self) -> tuple[Any, str]:
        requirement = Requirement(self.upstream)
        installed = importlib.metadata.version(requirement.name)
        if not requirement.specifier.contains(installed, prereleases=True):
            raise PatchError(f"{self.target}: written for {self.upstream}, but {installed} is installed")
        module, _, path = self.target.partition(":")
        *parents, name = path.split(".")
        try:
            owner = functools.reduce(getattr, parents, importlib.import_module(module))
            inspect.getattr_static(owner, name)
        except (ImportError, AttributeError) as error:
            raise PatchError(f"{self.target}: no such target in {requirement.name} {installed}") from error
        return owner, name


def apply(patches: Iterable[Patch]) -> None:
    """Apply patches in order."""
    for patch in patches:
        patch.apply()


def has_te_or_apex() -> bool:
    """Say whether the fused optimizers and layers the engine prefers can be imported."""
    return any(importlib.util.find_spec(name) is not None for name in ("transformer_engine", "apex"))
