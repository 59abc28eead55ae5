"""Hydra's own keys, as far as they may be set: FlagScale configures the rest, so that Hydra writes nothing.

Hydra uses some of them before it checks them, and others it does not check at all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from pydantic import AfterValidator, BeforeValidator, Field

from flagscale.config.load import read_section
from flagscale.config.schema import Section
from flagscale.config.source_map import SourceMap, index_sources
from flagscale.errors import Problem

_KEY = re.compile(r"([+~]*)hydra(?=[.=]|$)")


def _is_package(name: str) -> bool:
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.submodule_search_locations is not None


def _place(value: str) -> str:
    scheme, colon, _ = value.partition("://")
    if colon and scheme not in ("file", "pkg"):
        raise ValueError("input should be a folder, `file://FOLDER` or `pkg://PACKAGE`")
    if scheme == "pkg" and not _is_package(value.removeprefix("pkg://")):
        raise ValueError("there is no such package")
    if scheme != "pkg" and "${" not in value and not os.path.isdir(value.removeprefix("file://")):
        raise ValueError("there is no such folder")
    return value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _no_class(values: dict[str, Any]) -> dict[str, Any]:
    if any(name.startswith("_") for name in values):
        raise ValueError("a plugin is chosen with `hydra/sweeper=NAME` or `hydra/launcher=NAME`")
    return values


def _batched(values: dict[str, Any]) -> dict[str, Any]:
    size = values.get("max_batch_size")
    if size is not None and (type(size) is not int or size < 1):
        raise ValueError(f"`max_batch_size` must be a whole number of at least 1, not {size!r}")
    return values


_OfPlugin = Annotated[dict[str, Any], AfterValidator(_no_class)]


class _Folder(Section):
    dir: str | None = None
    subdir: str | None = None


class _Job(Section):
    name: str | None = None
    chdir: bool | None = None
    config: dict[str, Any] = Field(default_factory=dict)


class _Keys(Section):
    run: _Folder = _Folder()
    sweep: _Folder = _Folder()
    output_subdir: str | None = None
    job: _Job = _Job()
    sweeper: Annotated[_OfPlugin, AfterValidator(_batched)] = Field(default_factory=dict)
    launcher: _OfPlugin = Field(default_factory=dict)
    searchpath: list[Annotated[str, AfterValidator(_place)]] = Field(default_factory=list)


_GROUPS = ("run", "sweep", "job", "sweeper", "launcher")


class _CommandKeys(_Keys):
    mode: Annotated[Literal["RUN", "MULTIRUN"], BeforeValidator(_upper)] | None = None
    verbose: bool | str | list[str] = False


def checked_section(values: Any, source_map: SourceMap) -> tuple[dict[str, Any], list[Problem]]:
    """Return the section `hydra` of a file without the keys that have no value, and its mistakes."""
    return _checked(_Keys, values, source_map)


def override_problems(words: Sequence[str]) -> Iterator[Problem]:
    """Yield the mistakes in overrides of Hydra's own keys, except for those of Hydra's grammar."""
    parser = OverridesParser.create()
    for word in words:
        found = _KEY.match(word)
        if not found:
            continue
        try:
            override = parser.parse_rule(word, "override")
        except HydraException:
            continue
        if "~" in found[1]:
            yield Problem("Hydra's own keys cannot be removed", f"command line: {word}")
            continue
        names = str(override.key_or_group).split(".")[1:]
        tree: Any = override.value()
        if tree is None and names and names[0] in _GROUPS and len(names) == 1:
            yield Problem("a group of keys is expected here", f"command line: {override.key_or_group}")
            continue
        for name in reversed(names):
            tree = {name: tree}
        yield from _checked(_CommandKeys, tree, index_sources([], [word]))[1]


def _checked(
    model: type[Section], values: Any, source_map: SourceMap
) -> tuple[dict[str, Any], list[Problem]]:
    if not isinstance(values, dict):
        return {}, [Problem("a group of keys is expected here", source_map.where("hydra"))]
    section, problems = read_section(model, values, "hydra", source_map)
    return (section.model_dump(exclude_unset=True) if section else {}), problems
