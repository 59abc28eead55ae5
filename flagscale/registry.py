"""Name -> "module:attribute" tables, extended by entry points; nothing is imported until it is requested."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache, reduce
from importlib import import_module
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

from flagscale.errors import Problem, UserError, nearest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "actions": {
        "run": "flagscale.actions:run",
        "test": "flagscale.actions:test",
        "dryrun": "flagscale.actions:dryrun",
        "check": "flagscale.actions:check",
        "estimate": "flagscale.estimates.action:estimate",
        "query": "flagscale.actions:query",
        "logs": "flagscale.actions:logs",
        "stop": "flagscale.actions:stop",
        "checkpoints": "flagscale.actions:checkpoints",
        "auto_tune": "flagscale.tuning.action:auto_tune",
    },
    "engines": {
        "lm_eval": "flagscale.engines.lm_eval.adapter:LM_EVAL",
        "megatron": "flagscale.engines.megatron.adapter:MEGATRON",
        "vllm": "flagscale.engines.vllm.adapter:VLLM",
    },
    "runners": {
        "cloud": "flagscale.runners.cloud:CLOUD",
        "slurm": "flagscale.runners.slurm.runner:SLURM",
        "ssh": "flagscale.runners.ssh:SSH",
    },
    "transports": {
        "local": "flagscale.remote.transport:LocalTransport",
        "ssh": "flagscale.remote.ssh:SshTransport",
    },
    # Only the names are used; the architectures that vLLM itself supports are in its catalog.
    "vllm_architectures": {},
}
"""FlagScale's own names. Packages add names through the entry-point group `flagscale.<kind>`.

Platforms, chips and families are listed by their own packages.
"""

_PREFIX = "flagscale."
"""What the names of our groups of entry points begin with."""

CONTRACTS: Mapping[str, str] = {
    "actions": "collections.abc:Callable",
    "chips": "megatron.flagscale.chips.chip:Chip",
    "engines": "flagscale.engines.base:Engine",
    "families": "megatron.flagscale.convert.families.base:Family",
    "platforms": "flagscale.platforms:Platform",
    "runners": "flagscale.runners.base:JobRunner",
    "transports": "collections.abc:Callable",
}
"""The type of the objects of each kind. Those that are data have a `name`: the one that is registered."""


def names(kind: str, built_in: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return every known name of a kind with its "module:attribute"; built-in names cannot be replaced.

    `built_in`: FlagScale's own, if the package of that kind lists them.
    """
    added = {point.name: point.value for point in _added(kind)}
    return {**added, **(BUILT_IN[kind] if built_in is None else built_in)}


def is_known(kind: str, name: str) -> bool:
    """Return whether `name` is registered; installed packages are searched only if it is not built in."""
    return name in BUILT_IN[kind] or name in names(kind)


def registered_by(kind: str, name: str) -> str:
    """Return the distributions that registered a name, with their versions; "" if none did."""
    return " and ".join(sorted(map(_distribution, _named(kind, name))))


def load(kind: str, name: str, where: str = "", built_in: Mapping[str, str] | None = None) -> Any:
    """Import and return the object named `name`.

    Raises:
        UserError: the name is unknown (with the nearest name), two packages registered it, or its package is
            broken: it cannot be imported, or the object is not one of this kind with this name.
    """
    own = BUILT_IN[kind] if built_in is None else built_in
    if name in own:
        _note_ignored(kind, name)
        return _attribute(own[name])
    points = _named(kind, name)
    if not points:
        hint = nearest(name, names(kind, built_in))
        raise UserError([Problem(f"unknown {_noun(kind)} `{name}`", where, hint)])
    if len(points) > 1:
        what = f"the {_noun(kind)} `{name}` is registered by {registered_by(kind, name)}"
        raise UserError([Problem(what, where, "uninstall all but one of them")])
    return _checked(kind, points[0], where)


def load_each(kind: str, wanted: Iterable[str], built_in: Mapping[str, str] | None = None) -> Iterator[Any]:
    """Yield the objects with these names, for a search: a broken package is skipped with a note on stderr."""
    own = BUILT_IN[kind] if built_in is None else built_in
    for name in wanted:
        try:
            found = load(kind, name, "", built_in)
        except UserError as error:
            _note(f"skipped: {'; '.join(problem.what for problem in error.problems)}")
        except Exception as error:
            if name in own:
                raise
            source = f"the {_noun(kind)} `{name}` (registered by {registered_by(kind, name)})"
            _note(f"skipped: {source} raises {type(error).__name__}: {error}")
        else:
            yield found


def _checked(kind: str, point: EntryPoint, where: str) -> Any:
    """Return the object of an entry point; raises UserError if its package is broken."""
    try:
        found = _attribute(point.value)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise UserError([_broken(kind, point, f"cannot be loaded: {error}", where)]) from error
    contract, cause = _attribute(CONTRACTS[kind]), ""
    if not isinstance(found, contract):
        cause = f"is of the type `{type(found).__name__}`, not `{contract.__name__}`"
    elif not callable(found) and found.name != point.name:
        cause = f"calls itself `{found.name}`"
    if cause:
        raise UserError([_broken(kind, point, cause, where)])
    return found


def _broken(kind: str, point: EntryPoint, cause: str, where: str) -> Problem:
    what = f"the {_noun(kind)} `{point.name}` ({point.value}, registered by {_distribution(point)}) {cause}"
    return Problem(what, where, "fix or uninstall the package")


def _attribute(target: str) -> Any:
    module, _, attribute = target.partition(":")
    if not attribute:
        raise ImportError("the entry point needs the form `module:attribute`")
    return reduce(getattr, attribute.split("."), import_module(module))


def _named(kind: str, name: str) -> list[EntryPoint]:
    return [point for point in _added(kind) if point.name == name]


def _added(kind: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of a kind that installed packages bring."""
    return _installed(tuple(sys.path)).get(f"{_PREFIX}{kind}", ())


@cache
def _installed(path: tuple[str, ...]) -> Mapping[str, tuple[EntryPoint, ...]]:
    """Return the entry points of our groups, by group, in the packages on a path (`sys.path`).

    importlib.metadata takes 20 ms for them, so it is used only if there may be any.
    """
    if not any(map(_may_extend, path)) and not any(map(_finds_packages, sys.meta_path)):
        return {}
    from importlib.metadata import entry_points

    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points():
        if point.group.startswith(_PREFIX):
            found[point.group] = (*found.get(point.group, ()), point)
    return found


def _may_extend(folder: str) -> bool:
    """Return whether a package in a folder may have entry points in our groups."""
    try:
        names = os.listdir(folder or ".")
    except NotADirectoryError:
        return True  # a zip file
    except OSError:
        return False
    for name in names:
        if name.lower().endswith((".dist-info", "egg-info")):
            with suppress(OSError), open(os.path.join(folder, name, "entry_points.txt"), "rb") as file:
                if f"[{_PREFIX}".encode() in file.read():
                    return True
    return False


def _finds_packages(finder: object) -> bool:
    """Return whether an import hook may know of packages that are not in a folder of `sys.path`."""
    return finder is not PathFinder and hasattr(finder, "find_distributions")


def _noun(kind: str) -> str:
    return {"families": "family"}.get(kind, kind.removesuffix("s"))


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


@cache
def _note_ignored(kind: str, name: str) -> None:
    """Print, once, that packages cannot replace this built-in object."""
    if others := registered_by(kind, name):
        _note(f"the {_noun(kind)} `{name}` is FlagScale's own; the one of {others} is ignored")


@cache
def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
