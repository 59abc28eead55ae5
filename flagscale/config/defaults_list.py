"""The form of a file's `defaults:`, the list of the files that Hydra merges with it."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from flagscale.config.yaml_form import kind_of, shown
from flagscale.errors import Problem

_FORM = "write `- GROUP: FILE` for a file in a folder, `- FILE` for a file beside this one, or `- _self_`"
_STR = "tag:yaml.org,2002:str"


def defaults_problems(root: yaml.MappingNode, file: str) -> Iterator[Problem]:
    """Yield every entry of the defaults list that does not name files."""
    for key, listed in root.value:
        if key.value != "defaults" or key.tag != _STR:
            continue
        where = f"{file}:{listed.start_mark.line + 1}"
        if not isinstance(listed, yaml.SequenceNode):
            yield Problem(f"`defaults` must be a list, not {_shown(listed)}", where, _FORM)
            continue
        seen: set[str] = set()
        for entry in listed.value:
            where = f"{file}:{entry.start_mark.line + 1}"
            if what := _entry_problem(entry):
                yield Problem(f"defaults: {what}", where, _FORM)
                continue
            name = str(entry.value if isinstance(entry, yaml.ScalarNode) else entry.value[0][0].value)
            if name in seen:
                yield Problem(f"defaults: `{name}` is given twice", where, "keep one of them")
            seen.add(name)


def _entry_problem(entry: yaml.Node) -> str:
    """Return why an entry does not name files; "" if it does."""
    if isinstance(entry, yaml.ScalarNode):
        return "" if _is_name(entry) else f"{_shown(entry)} is not the name of a file"
    if not isinstance(entry, yaml.MappingNode):
        return f"{kind_of(entry)} is not the name of a file"
    if len(entry.value) != 1:
        return f"an entry names one group, not {len(entry.value)}"
    [(group, choice)] = entry.value
    if not _is_name(group):
        return f"{_shown(group)} is not the name of a group"
    names = choice.value if isinstance(choice, yaml.SequenceNode) else [choice]
    wrong = [name for name in names if not (_is_name(name) or (name is choice and _is_null(name)))]
    return f"{_shown(wrong[0])} is not the name of a file of `{shown(group)}`" if wrong else ""


_NAME = re.compile(r"(?!\?\?\?$)\S.{0,199}")
"""Longer names cannot be those of files, and Hydra fails where it looks for them."""
_REFERENCE = re.compile(r"\$\{[\w./@]+\}")


def _is_name(node: yaml.Node) -> bool:
    """Return whether a node is a name, perhaps with references to other choices (`${train}`) in it."""
    if not isinstance(node, yaml.ScalarNode) or node.tag != _STR:
        return False
    return _NAME.fullmatch(node.value) is not None and "${" not in _REFERENCE.sub("", node.value)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")


def _shown(node: yaml.Node) -> str:
    return "nothing" if _is_null(node) else kind_of(node)


def line_of_entry(root: yaml.Node | None, name: str) -> int | None:
    """Return the line of the entry that adds a file of this name; None if it is not written there."""
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    open_ = [listed for key, listed in pairs if key.value == "defaults"]
    while open_:
        node = open_.pop(0)
        if isinstance(node, yaml.ScalarNode):
            if str(node.value).partition("@")[0].removesuffix(".yaml").rpartition("/")[2] == name:
                return node.start_mark.line + 1
        elif isinstance(node, yaml.MappingNode):
            open_ += [choice for _, choice in node.value]
        else:
            open_ += node.value
    return None


def files_named(entries: Iterable[Any], folder: str) -> list[str]:
    """Return the files that the sound entries of a list add, as paths below the root without `.yaml`."""
    found: list[str] = []
    for entry in entries:
        group, choice = next(iter(entry.items())) if isinstance(entry, dict) else ("", entry)
        *keywords, group = group.split(" ")
        if "override" in keywords or choice is None:
            continue
        for name in choice if isinstance(choice, list) else [choice]:
            path = posixpath.join("/", folder, group.partition("@")[0], name.partition("@")[0])
            found.append(posixpath.normpath(path).lstrip("/").removesuffix(".yaml"))
    return found
