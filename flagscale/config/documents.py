"""The YAML files of a configuration: each is read once, and its form is checked before Hydra merges it.

Hydra and OmegaConf assume files of the right form. Others raise errors of many types, most of which name
neither file nor line, and only the first mistake is found. A file that passes these checks can be merged.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra.plugins.config_source import ConfigSource

from flagscale.config.defaults_list import defaults_problems
from flagscale.config.yaml_form import Refused, composed, constructed, form_problems, is_empty, kind_of
from flagscale.errors import Problem
from flagscale.files import read_regular


@dataclass(frozen=True)
class Document:
    """One version of a YAML file."""

    root: yaml.Node | None = None
    """Its syntax tree; None if the file is empty or cannot be read."""
    values: Mapping[Any, Any] = field(default_factory=dict)
    """If the file has a mistake, only its defaults list, so that further files are checked too."""
    package: str | None = None
    """What its `# @package` line says."""
    problems: tuple[Problem, ...] = ()


def read_document(path: Path) -> Document:
    """Return a YAML file's content, and every mistake in its form."""
    path = Path(os.path.abspath(path))
    name = os.path.relpath(path)
    try:
        found = path.stat()
        return _document(path, name, (found.st_mtime_ns, found.st_size, found.st_ino))
    except OSError as error:
        return Document(problems=(Problem(f"the file cannot be read: {error.strerror}", name),))


@lru_cache(maxsize=64)
def _document(path: Path, name: str, version: tuple[int, ...]) -> Document:
    """Read a file once per version: Hydra asks for each file several times, and the source map once more."""
    content = read_regular(path)
    try:
        return _parsed(content.decode("utf-8-sig"), name)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return Document(problems=(Problem("this is not UTF-8 text", f"{name}:{line}"),))


def _parsed(text: str, name: str) -> Document:
    try:
        root = composed(text)
    except Refused as refusal:
        before = _before(text, refusal.first_line)
        rest = _parsed(before, name) if before else Document()
        values = {"defaults": rest.values["defaults"]} if "defaults" in rest.values else {}
        return Document(None, values, rest.package, (*rest.problems, refusal.problem(name)))
    header, problems = _header(text, name)
    if root is None or is_empty(root):
        return Document(None, {}, header, tuple(problems))
    if not isinstance(root, yaml.MappingNode):
        what = f"a file holds keys with values (`key: value`), not {kind_of(root)}"
        problems.append(Problem(what, f"{name}:{root.start_mark.line + 1}"))
        return Document(None, {}, header, tuple(problems))
    wrong = [*defaults_problems(root, name)]
    problems += [*form_problems(root, name), *wrong]
    if not problems:
        try:
            return Document(root, constructed(root), header)
        except Refused as refusal:
            problems.append(refusal.problem(name))
    entries = next((value for key, value in root.value if key.value == "defaults"), None)
    is_sound = entries is not None and not wrong and not any(form_problems(entries, name))
    values = {"defaults": constructed(entries)} if entries is not None and is_sound else {}
    return Document(root, values, header, tuple(problems))


def _before(text: str, line: int) -> str:
    """Return the text above the top-level key in which a mistake begins."""
    lines = text.splitlines(keepends=True)[:line]
    while lines and lines[-1][0] in " \t-#\r\n":
        lines.pop()
    return "".join(lines[:-1])


def _header(text: str, name: str) -> tuple[str | None, list[Problem]]:
    """Return the package that Hydra reads from the first lines of a file."""

    def problem(what: str, hint: str, line: re.Pattern[str]) -> list[Problem]:
        found = line.search(text)
        return [Problem(what, f"{name}:{text.count(chr(10), 0, found.start() if found else 0) + 1}", hint)]

    try:
        package = ConfigSource._get_header_dict(text[:512])["package"]
    except ValueError:
        package = ""
    if package is None and _PACKAGE_LINE.search(text):
        what, hint = "Hydra ignores a `# @package` line that is not the first", "move it to the first line"
        return None, problem(what, hint, _PACKAGE_LINE)
    if package is None or _PACKAGE.fullmatch(package):
        return package, []
    what = "a first line that begins with `# @` must be a `# @package` line that Hydra can read"
    hint = "valid: `# @package _global_`, `# @package _group_`, or names joined by dots"
    return None, problem(what, hint, _HEADER_LINE)


_HEADER_LINE = re.compile(r"^ *# *@", re.MULTILINE)
_PACKAGE_LINE = re.compile(r"^#\s*@package\b", re.MULTILINE)
_PACKAGE = re.compile(r"(?!hydra\b)[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*")
