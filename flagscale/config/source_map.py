"""Where a configuration key was written: the YAML file and line, or the command line.

Hydra merges several files and forgets the lines; an error that names them saves the user a search.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from omegaconf import ListConfig, OmegaConf


@dataclass(frozen=True)
class SourceMap:
    """Key path (`experiment.runner.nnodes`) -> "file:line" for the files that made one configuration."""

    lines: Mapping[str, str] = field(default_factory=dict)
    overridden: frozenset[str] = frozenset()
    base60: Mapping[str, str] = field(default_factory=dict)
    """Key path -> text of values such as `1:4` without quotes, which YAML reads as a base-60 number."""

    def where(self, key_path: str) -> str:
        """Return `file:line: key.path`, or the place of the nearest parent if the key is not written."""
        parts = key_path.split(".")
        for length in range(len(parts), 0, -1):
            parent = ".".join(parts[:length])
            if parent in self.overridden:
                return f"command line: {key_path}"
            if parent in self.lines:
                return f"{self.lines[parent]}: {key_path}"
        if any(key.startswith(f"{key_path}.") for key in self.overridden):
            return f"command line: {key_path}"
        return key_path


def index_sources(files: Iterable[tuple[Path, str]], overrides: Iterable[str] = ()) -> SourceMap:
    """Index `files`, pairs of a YAML file and the package (key-path prefix) its content is placed under.

    Later files win, except over keys of a file whose defaults list puts `_self_` before other entries. A file
    that cannot be read is skipped: messages then only lack its lines.
    """
    lines: dict[str, str] = {}
    base60: dict[str, str] = {}
    chosen: set[str] = set()
    for path, package in files:
        chosen.add(f"{path.parent.name}={path.stem}")
        for file, prefix, root in _with_siblings(path, package):
            found: dict[str, str] = {}
            _index(root, prefix, os.path.relpath(file), found, base60)
            lines |= (
                {key: line for key, line in found.items() if key not in lines} if _yields(root) else found
            )
    written: dict[str, str] = {}
    for override in _as_written(overrides):
        # `train=other` chooses a file; it writes no key.
        if not _is_choice(override.lstrip("+~"), chosen):
            key, _, value = override.lstrip("+~").partition("=")
            written[key] = value
            if value.startswith("{"):
                _index(_parsed(value), key, "", written, {})
    return SourceMap(lines, frozenset(written), base60)


def _as_written(overrides: Iterable[str]) -> list[str]:
    """Return Hydra's list with interpolations unresolved: one that fails is reported later, with its key."""
    if isinstance(overrides, ListConfig):
        return [str(text) for text in OmegaConf.to_container(overrides, resolve=False) or ()]
    return list(overrides)


def _with_siblings(
    path: Path, package: str, seen: frozenset[Path] = frozenset()
) -> Iterator[tuple[Path, str, yaml.Node | None]]:
    """Yield (file, package, content) of a file, after the files beside it that its defaults list names."""
    if path in seen:
        return
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    root = _parsed(text)
    header = re.search(r"^#\s*@package\s+(\S+)", text, re.MULTILINE)
    prefix = _package(header.group(1), package) if header else package
    for entry in _defaults(root):
        if isinstance(entry, yaml.ScalarNode) and entry.value != "_self_":
            name = str(entry.value).partition("@")[0].removesuffix(".yaml")
            yield from _with_siblings(path.parent / f"{name}.yaml", package, seen | {path})
    yield path, prefix, root


def _parsed(text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None


def _package(header: str, default: str) -> str:
    """Return the prefix that a `# @package` line means: absolute, or relative to `_global_` or `_group_`."""
    head, _, rest = header.partition(".")
    if head in ("_global_", "_group_"):
        start = default if head == "_group_" else ""
        return ".".join(part for part in (start, rest) if part)
    return header


def _defaults(root: yaml.Node | None) -> list[yaml.Node]:
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    found = next((value for key, value in pairs if key.value == "defaults"), None)
    return list(found.value) if isinstance(found, yaml.SequenceNode) else []


def _yields(root: yaml.Node | None) -> bool:
    """Return whether the files of a defaults list win over the file itself: `_self_` does not come last."""
    entries = _defaults(root)
    return bool(entries) and entries[-1].value != "_self_"


def _is_choice(override: str, chosen: set[str]) -> bool:
    key, _, value = override.partition("=")
    group = key.partition("@")[0].rpartition("/")[2]
    return f"{group}={value}" in chosen


def _index(
    node: yaml.Node | None, prefix: str, file: str, lines: dict[str, str], base60: dict[str, str]
) -> None:
    children: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        children = [(str(key.value), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(str(index), item, item) for index, item in enumerate(node.value)]
    elif isinstance(node, yaml.ScalarNode) and node.tag.endswith(":int") and ":" in node.value:
        base60[prefix] = node.value
    for name, start, value in children:
        path = f"{prefix}.{name}" if prefix else name
        lines[path] = f"{file}:{start.start_mark.line + 1}"
        _index(value, path, file, lines, base60)
