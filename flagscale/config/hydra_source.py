"""Have Hydra read YAML files through `documents`."""

from __future__ import annotations

import builtins
import os
import posixpath
import sys
from collections.abc import Mapping
from pathlib import Path

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf

from flagscale.config.defaults_list import files_named
from flagscale.config.documents import read_document
from flagscale.config.source_map import index_sources
from flagscale.errors import Problem

_OBJECT_STORAGE = "multistorageclient.contrib.hydra"
"""What the Hydra plugin of multi-storage-client imports; if that fails, the plugin registers nothing.

Megatron-Energon requires that package, and Hydra imports every plugin for every command. This takes as long
as all the rest of a `query`, to read configurations at `msc://`; those of FlagScale are files.
"""


def problems_of_files() -> dict[Problem, None]:
    """Return an empty collection, to which every mistake in the form of a file is added as Hydra reads it.

    A file with a mistake is merged as if it held only its defaults list, so that all files are read.
    """
    problems: dict[Problem, None] = {}
    named: dict[str, list[str]] = {}

    class Source(FileConfigSource):
        def load_config(self, config_path: str) -> ConfigResult:
            path = Path(self.path, self._normalize_file_name(config_path))
            document = read_document(path)
            values = dict(document.values)
            found = [*document.problems]
            if "hydra" in values:
                from flagscale.config.hydra_keys import checked_section  # late: it imports pydantic

                values["hydra"], wrong = checked_section(values["hydra"], index_sources([(path, "")]))
                found += wrong
            name = posixpath.normpath(config_path.removesuffix(".yaml"))
            named[name] = files_named(values.get("defaults", ()), posixpath.dirname(name))
            if circle := _circle(name, named):
                what = f"the defaults lists form a circle: {' -> '.join(circle)}"
                found.append(Problem(what, os.path.relpath(path), "remove one of these entries"))
                values = {}
            problems.update(dict.fromkeys(found))
            header = {"package": document.package}
            return ConfigResult(self.provider, self.full_path(), OmegaConf.create(values), header)

        def list(self, config_path: str, results_filter: ObjectType | None) -> builtins.list[str]:
            try:
                return super().list(config_path, results_filter)
            except OSError as error:
                what = f"the folder cannot be read: {error.strerror}"
                problems[Problem(what, os.path.relpath(Path(self.path, config_path)))] = None
                return []

    _find_plugins()  # registers Hydra's own source, which is then replaced
    SourcesRegistry.instance().types[Source.scheme()] = Source
    return problems


def _find_plugins() -> None:
    """Have Hydra import its plugins, the user's too, except the one for object storage."""
    is_ours = sys.modules.setdefault(_OBJECT_STORAGE, None) is None  # type: ignore[arg-type]
    try:
        Plugins.instance()
    finally:
        if is_ours:
            del sys.modules[_OBJECT_STORAGE]


def _circle(start: str, named: Mapping[str, list[str]]) -> list[str]:
    """Return the way from a file back to itself; an empty list if there is none."""
    ways = [[start]]
    seen = {start}
    while ways:
        way = ways.pop()
        for name in named.get(way[-1], ()):
            if name == start:
                return [*way, name]
            if name not in seen:
                seen.add(name)
                ways.append([*way, name])
    return []
