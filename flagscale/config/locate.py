"""Where a configuration key was written: the YAML file and line, or the command line.

Hydra merges several files and forgets the lines; an error that names them saves the user a search.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Locator:
    """Key path (`experiment.runner.nnodes`) -> "file:line" for the files that made one configuration."""

    lines: Mapping[str, str] = field(default_factory=dict)
    overridden: frozenset[str] = frozenset()

    def where(self, key_path: str) -> str:
        """Return `file:line: key.path`, or the place of the nearest parent where the key itself is absent."""
        if key_path in self.overridden:
            return f"command line: {key_path}"
        parts = key_path.split(".")
        for length in range(len(parts), 0, -1):
            line = self.lines.get(".".join(parts[:length]))
            if line:
                return f"{line}: {key_path}"
        return key_path


def locator(files: Iterable[tuple[Path, str]], overrides: Iterable[str] = ()) -> Locator:
    """Index `files`, pairs of a YAML file and the package (key-path prefix) its content is placed under.

    Later files win, as in Hydra's merge. A file that cannot be read is left out: it only makes messages poorer.
    """
    lines: dict[str, str] = {}
    for path, package in files:
        try:
            text = path.read_text(encoding="utf-8")
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue
        header = re.search(r"^#\s*@package\s+(\S+)", text, re.MULTILINE)
        prefix = header.group(1) if header else package
        prefix = "" if prefix in ("_global_", "_group_") and header else prefix
        _index(root, prefix, os.path.relpath(path), lines)
    keys = frozenset(override.partition("=")[0].lstrip("+~") for override in overrides)
    return Locator(lines, keys)


def _index(node: yaml.Node | None, prefix: str, file: str, lines: dict[str, str]) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        path = f"{prefix}.{key.value}" if prefix else str(key.value)
        lines[path] = f"{file}:{key.start_mark.line + 1}"
        _index(value, path, file, lines)
