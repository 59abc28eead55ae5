"""Find the file of a program that `experiment.task.entrypoint` names, without importing anything."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

from flagscale import EXTENSIONS

SOURCE_ROOT = Path(__file__).resolve().parents[2]
"""The folder of this package: the root of a clone, or of the installed packages."""
_ENGINES = ("torch", "megatron", "vllm", "transformers")


def is_engine(module: str) -> bool:
    """Return whether a module belongs to an engine. Our own modules are judged by what they import."""
    return module.split(".")[0] in _ENGINES and not f"{module}.".startswith("megatron.flagscale.")


@dataclass(frozen=True)
class Entrypoint:
    """The result of a search for a program."""

    source: Path | None
    """Its file; None if it is not found, or not written in Python."""
    is_missing: bool = False
    """Whether no Python on this machine can find it."""
    beside: tuple[str, ...] = ()
    """If it is missing: the programs in the place where it should be, as entrypoints."""


def find_entrypoint(entrypoint: str, folders: Sequence[str] = ()) -> Entrypoint:
    """Search for a path to a `.py`, or for a module as the ranks do, and in `folders`.

    A module of an engine is never missing: the engine may be installed only where the job runs.
    """
    if entrypoint.endswith(".py"):
        path = Path(entrypoint)
        if os.path.isfile(path):
            return Entrypoint(path)
        return Entrypoint(None, True, tuple(map(str, sorted(path.parent.glob("*.py")))))
    # Some of our packages are below folders of the clone (see `plan.render`).
    own = (str(SOURCE_ROOT / name) for name in EXTENSIONS)
    roots = [str(SOURCE_ROOT), *own, os.getcwd(), *folders, *sys.path]
    places, package = roots, ""
    *parents, name = entrypoint.split(".")
    for parent in parents:
        package = f"{package}.{parent}".lstrip(".")
        inside = _inside(package, parent, places)
        if inside is None:
            return _not_found(entrypoint, package.rpartition(".")[0], places if places is not roots else ())
        places = inside
    spec = PathFinder.find_spec(entrypoint, places)
    if spec is None and not parents:
        spec = find_spec(name)  # of an editable package, for example
    if spec is None:
        return _not_found(entrypoint, package, places if parents else [os.getcwd()])
    source = Path(spec.origin) if spec.origin else None
    return Entrypoint(source if source and source.suffix == ".py" else None)


def _inside(package: str, name: str, places: Sequence[str]) -> list[str] | None:
    """Return the folders in which the modules of a package are searched; None if there is no such package."""
    spec = PathFinder.find_spec(package, places)
    if spec is None and package == name:
        spec = find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        return None
    if spec.origin:
        return list(spec.submodule_search_locations)
    # A namespace package: its own list cannot be read before its parents are imported.
    return [folder for place in places if os.path.isdir(folder := os.path.join(place, name))]


def _not_found(entrypoint: str, package: str, places: Sequence[str]) -> Entrypoint:
    if is_engine(entrypoint):
        return Entrypoint(None)
    names = sorted(
        {path.stem for place in places for path in Path(place).glob("*.py") if path.stem.isidentifier()}
    )
    return Entrypoint(None, True, tuple(f"{package}.{name}".lstrip(".") for name in names))
