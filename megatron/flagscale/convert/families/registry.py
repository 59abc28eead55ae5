"""The known families: a table of built-in ones, and entry points `flagscale.families` of other packages."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

from flagscale.errors import Problem, UserError, nearest
from megatron.flagscale.convert.families.base import Family

_HERE = __name__.rpartition(".")[0]
BUILT_IN = {
    "llama": f"{_HERE}.llama:LLAMA",
    "aquila": f"{_HERE}.aquila:AQUILA",
    "mixtral": f"{_HERE}.mixtral:MIXTRAL",
    "qwen2": f"{_HERE}.qwen2:QWEN2",
    "qwen3": f"{_HERE}.qwen3:QWEN3",
}
"""Name -> "module:attribute", in the order in which families are tried: the first match is used."""


@cache
def names() -> dict[str, str]:
    """Return every known name with its "module:attribute"; other packages cannot replace built-in names."""
    added = {point.name: point.value for point in entry_points(group="flagscale.families")}
    return BUILT_IN | {name: added[name] for name in sorted(added) if name not in BUILT_IN}


@cache
def load(name: str) -> Family:
    """Import and return a family.

    Raises:
        UserError: the name is unknown, or its entry point does not refer to a family of this name.
    """
    if name not in names():
        raise UserError([Problem(f"unknown family `{name}`", "", nearest(name, names()))])
    target = names()[name]
    module, _, attribute = target.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        what = f"family `{name}`: {target} cannot be imported: {error}"
        raise UserError([Problem(what, hint="fix or uninstall its package")]) from error
    if not isinstance(found, Family) or found.name != name:
        raise UserError(f"family `{name}`: {target} is not a `Family` with this name")
    return found


def families() -> Iterator[Family]:
    """Yield every known family, built-in ones first."""
    return map(load, names())
