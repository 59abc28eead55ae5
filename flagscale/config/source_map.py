"""Where a configuration key was written, the YAML file and line or the command line, and with which text.

Hydra merges several files and forgets the lines; an error that names them saves the user a search. It also
forgets how a number was written: `1.10` becomes 1.1.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flagscale.config.documents import read_document


@dataclass(frozen=True)
class SourceMap:
    """Key path (`experiment.runner.nnodes`) -> "file:line" for the files that made one configuration."""

    lines: Mapping[str, str] = field(default_factory=dict)
    overridden: frozenset[str] = frozenset()
    texts: Mapping[str, str] = field(default_factory=dict)
    """Key path -> text of the values without quotes, which YAML or Hydra may read as numbers or switches."""
    unreadable: frozenset[str] = frozenset()
    """Paths of the keys that were left out of the configuration, because a mistake was reported for them."""

    def unreadable_in(self, group: str) -> frozenset[str]:
        """Return the names of the keys of a group that were left out, wholly or in a part of their value."""
        within = (path for path in self.unreadable if path.startswith(f"{group}."))
        return frozenset(path[len(group) + 1 :].partition(".")[0] for path in within)

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

    def text(self, key_path: str, value: object) -> str | None:
        """Return how the number or switch at a key path was written; None if that is not known.

        A reference to another key (`${train.version}`) is followed. `value` is the final value: a text that
        reads as another value belongs to a file that was overridden. A value that is a text itself is final.
        """
        if isinstance(value, str):
            return None
        text = self.texts.get(key_path)
        seen = {key_path}
        while text and (reference := _REFERENCE.fullmatch(text)) and reference[1] not in seen:
            key_path = reference[1]
            seen.add(key_path)
            text = self.texts.get(key_path)
        if text is None or key_path in self.overridden:
            return text
        return text if repr(_read(text)) == repr(value) else None


def index_sources(files: Iterable[tuple[Path, str]], overrides: Iterable[str] = ()) -> SourceMap:
    """Index `files`, pairs of a YAML file and the package (key-path prefix) its content is placed under.

    Later files win, except over keys of a file whose defaults list puts `_self_` before other entries. A file
    that cannot be read is skipped: messages then only lack its lines.
    """
    lines: dict[str, str] = {}
    texts: dict[str, str] = {}
    chosen: set[str] = set()
    for path, package in files:
        chosen.add("/" + path.as_posix().removesuffix(".yaml"))
        for file, prefix, root in _with_siblings(path, package):
            found = _index(root, prefix, os.path.relpath(file))
            given = _texts(root, prefix)
            if _yields(root):
                given = {key: text for key, text in given.items() if key not in lines}
                found = {key: line for key, line in found.items() if key not in lines}
            lines |= found
            texts |= given
    written: set[str] = set()
    for override in as_written(overrides):
        # `train=other` chooses a file; it writes no key.
        if not _is_choice(override.lstrip("+~"), chosen):
            key, _, value = override.lstrip("+~").partition("=")
            written.add(key)
            texts[key] = value.strip()
            if value.startswith(("{", "[")):
                # Hydra reads `{a:1}` as YAML reads `{a: 1}`.
                root = _parsed(_KEY_IN_BRACES.sub(r"\1: ", value))
                written |= _index(root, key, "").keys()
                texts |= _texts(root, key)
    return SourceMap(lines, frozenset(written), texts)


_REFERENCE = re.compile(r"\$\{([\w.-]+)\}")
_KEY_IN_BRACES = re.compile(r"([{,]\s*[\w.+-]+)\s*:\s*")


def _read(text: str) -> object:
    """Return the value that Hydra reads from a text without quotes in a file."""
    try:
        config = OmegaConf.create(f"it: {text}")
        return config.get("it") if isinstance(config, DictConfig) else None
    except (yaml.YAMLError, OmegaConfBaseException):
        return None


def as_written(overrides: Iterable[str]) -> list[str]:
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
    document = read_document(path)
    root = document.root
    prefix = _package(document.package, package) if document.package else package
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
    ending = f"/{key.partition('@')[0]}/{value.strip().removesuffix('.yaml')}"
    return any(one.endswith(ending) for one in chosen)


def _index(root: yaml.Node | None, prefix: str, file: str) -> dict[str, str]:
    """Return the line of each key and list item of a file."""
    return {path: f"{file}:{start.start_mark.line + 1}" for path, start, _ in _entries(root, prefix)}


def _texts(root: yaml.Node | None, prefix: str) -> dict[str, str]:
    """Return the text of each value of a file; an empty text if it is not a single value, or is quoted and
    not a reference.
    """
    return {path: _text_of(node) for path, _, node in _entries(root, prefix)}


def _text_of(node: yaml.Node) -> str:
    is_kept = isinstance(node, yaml.ScalarNode) and (not node.style or _REFERENCE.fullmatch(node.value))
    return str(node.value) if is_kept else ""


def _entries(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Yield (key path, where it begins, value) of each key and list item; keys merged by `<<` come first."""
    children: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for one in reversed(merged):
                    yield from _entries(one, prefix)
            else:
                children.append((str(key.value), key, value))
    elif isinstance(node, yaml.SequenceNode):
        children = [(str(index), item, item) for index, item in enumerate(node.value)]
    for name, start, value in children:
        path = f"{prefix}.{name}" if prefix else name
        yield path, start, value
        yield from _entries(value, path)
