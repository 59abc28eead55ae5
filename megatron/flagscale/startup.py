"""Start a rank fast: collect no garbage during imports, and import and parse only what is used, once."""

from __future__ import annotations

import ast
import functools
import gc
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder, SourceFileLoader
from typing import Any

from megatron.flagscale.patching import Patch, PatchError

_TOKENIZERS = "megatron.core.tokenizers.text.libraries"


@contextmanager
def importing() -> Iterator[None]:
    """Collect no garbage meanwhile, and leave all objects that exist then out of later collections.

    Importing torch and the engine creates a million objects that live as long as the process, and Python
    would search them for garbage again and again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def import_on_use(package: str) -> None:
    """Import a package whose `__init__` only imports names, and each of these when it is first used.

    No effect if the package is already imported. Raises `PatchError` if its `__init__` does anything else.
    """
    if package in sys.modules:
        return
    parent, _, own = package.rpartition(".")
    within = importlib.util.find_spec(parent)  # the parent itself may import the package
    spec = within and PathFinder.find_spec(package, within.submodule_search_locations)
    if spec is None or not isinstance(spec.loader, SourceFileLoader):
        raise PatchError(f"{package}: package not found")
    homes = _homes(package, spec.loader.get_data(spec.loader.path))
    module = importlib.util.module_from_spec(spec)

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    module.__getattr__ = load  # type: ignore[method-assign]
    sys.modules[package] = module
    setattr(importlib.import_module(parent), own, module)


def _homes(package: str, source: bytes) -> dict[str, str]:
    """Return the module of each name that an `__init__` imports."""
    homes: dict[str, str] = {}
    for statement in ast.parse(source).body:
        if not isinstance(statement, ast.ImportFrom) or statement.level or not statement.module:
            raise PatchError(f"{package}: line {statement.lineno} is not an import of names from a module")
        homes |= {name.asname or name.name: statement.module for name in statement.names}
    return homes


def _importing_one_library(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def _build_tokenizer(args: Any) -> Any:
        import_on_use(_TOKENIZERS)
        return original(args)

    return _build_tokenizer


def _once_per_class(original: Callable[[Any, type], dict[str, str]]) -> Callable[[Any, type], dict[str, str]]:
    known: dict[type, dict[str, str]] = {}

    @functools.wraps(original)
    def _get_field_docstrings(self: Any, config: type) -> dict[str, str]:
        if config not in known:
            known[config] = original(self, config)
        return dict(known[config])

    return _get_field_docstrings


PATCHES = (
    Patch(
        "megatron.training.global_vars:_build_tokenizer",
        _importing_one_library,
        "For any tokenizer, it imports the libraries of all: transformers alone takes more than a second.",
        "worker",
        until="it imports the library of the tokenizer that is asked for",
    ),
    Patch(
        "megatron.training.argument_utils:ArgumentGroupFactory._get_field_docstrings",
        _once_per_class,
        "It parses the engine's sources for help texts, at each of the four times that a parser is built.",
        "worker",
        until="the trainer builds its parser once",
    ),
)
