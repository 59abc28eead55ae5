"""The form of a YAML text: its syntax, depth, keys, tags, numbers and interpolations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import GrammarParseError
from omegaconf.grammar_parser import parse
from yaml.reader import Reader

from flagscale.errors import Problem, first_line

_DEEPEST = 50
"""Levels of nesting. OmegaConf needs about ten calls per level, of the thousand that Python allows."""
_MOST = 100_000
"""Values of a text with aliases, each of which stands for a copy."""
_MOST_DIGITS = 1000
"""Python prints no number of more than 4300 digits, hexadecimal ones included."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads YAML as OmegaConf does, ten times as fast; keys given twice are found by `form_problems`."""

    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers


class Refused(Exception):
    """A text that has no form; names one mistake."""

    def __init__(self, what: str, line: int, hint: str = "", first_line: int = 0) -> None:
        super().__init__(what)
        self.what, self.line, self.hint = what, line, hint
        self.first_line = min(line, first_line or line)
        """Where the part of the text begins that is wrong."""

    def problem(self, file: str) -> Problem:
        return Problem(self.what, f"{file}:{self.line}", self.hint)


def composed(text: str) -> yaml.Node | None:
    """Return the syntax tree of a text, which has no cycles and whose size and depth are limited.

    Raises:
        Refused: this is not YAML, or too deep.
    """
    if found := Reader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise Refused(f"YAML does not allow the character U+{ord(found[0]):04X}", line, "remove it")
    try:
        _check_depth(text)
        root: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise _refused(error) from None
    if root is not None and "*" in text:
        _measure(root, {})
    return root


def constructed(node: yaml.Node) -> Any:
    """Return the values of a tree without `form_problems`; raises Refused if a `<<` has no mapping."""
    try:
        return _Loader("").construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise _refused(error) from None


def _refused(error: yaml.MarkedYAMLError) -> Refused:
    what = f"not valid YAML: {' '.join(filter(None, (error.context, error.problem)))}"
    first, last = (mark.line + 1 if mark else 0 for mark in (error.context_mark, error.problem_mark))
    begins = f" (it begins in line {first})" if 0 < first < last else ""
    return Refused(what + begins, last or first or 1, first_line=first)


def _check_depth(text: str) -> None:
    """Refuse a text that is nested too deeply, without recursion, unlike what reads it later."""
    depth = line = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else line
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise Refused(f"more than {_DEEPEST} levels of nesting", line)


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return the number of values of a tree and its depth, with a copy in place of each alias."""
    size, depth = known.get(id(node), (0, 0))
    if size < 0:
        raise Refused("an alias (`*`) stands within what it refers to", node.start_mark.line + 1)
    if size == 0 and isinstance(node, yaml.CollectionNode):
        known[id(node)] = (-1, 0)
        parts = [_measure(part, known) for part in _parts(node)]
        size = 1 + sum(part for part, _ in parts)
        depth = 1 + max((part for _, part in parts), default=0)
        known[id(node)] = (size, depth)
    if size > _MOST or depth > _DEEPEST:
        limit = f"{_MOST} values" if size > _MOST else f"{_DEEPEST} levels of nesting"
        raise Refused(f"aliases (`*`) stand for more than {limit}", node.start_mark.line + 1, first_line=1)
    return max(size, 1), depth


def _parts(node: yaml.CollectionNode) -> Iterator[yaml.Node]:
    for part in node.value:
        yield from part if isinstance(node, yaml.MappingNode) else (part,)


def is_empty(node: yaml.Node | None) -> bool:
    """Return whether a text holds nothing."""
    return node is None or (isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"))


def kind_of(node: yaml.Node) -> str:
    """Return what a node is, in words."""
    if isinstance(node, yaml.MappingNode):
        return "a group of keys"
    return "a list" if isinstance(node, yaml.SequenceNode) else f"`{shown(node)}`"


def shown(node: yaml.Node) -> str:
    """Return the text of a node on one line, shortened."""
    text = " ".join(str(node.value).split())
    return text if len(text) <= 40 else f"{text[:40]}..."


def form_problems(root: yaml.Node, file: str) -> Iterator[Problem]:
    """Yield every value and key of a tree that OmegaConf cannot hold, and every key given twice."""
    loader, done, open_ = _Loader(""), set(), [root]
    while open_:
        node = open_.pop()
        if id(node) in done:
            continue
        done.add(id(node))
        where = f"{file}:{node.start_mark.line + 1}"
        if problem := _tag_problem(node, where) or _scalar_problem(node, where, loader):
            yield problem
        elif isinstance(node, yaml.MappingNode):
            yield from _key_problems(node, file, loader)
            open_ += [value for _, value in reversed(node.value)]
        elif isinstance(node, yaml.SequenceNode):
            open_ += reversed(node.value)


_TAGS = {
    yaml.ScalarNode: ("str", "int", "float", "bool", "null"),
    yaml.SequenceNode: ("seq",),
    yaml.MappingNode: ("map",),
}
_PREFIX = "tag:yaml.org,2002:"


def _tag_problem(node: yaml.Node, where: str) -> Problem | None:
    name = node.tag.removeprefix(_PREFIX)
    if node.tag.startswith(_PREFIX) and name in _TAGS[type(node)]:
        return None
    if isinstance(node, yaml.ScalarNode) and name in ("merge", "value"):
        return Problem(f"`{node.value}` means something else in YAML", where, f'quote it: "{node.value}"')
    tag = f"!!{name}" if name != node.tag else name
    return Problem(f"the tag `{tag}` is not supported here", where, "remove it")


def _scalar_problem(node: yaml.Node, where: str, loader: _Loader) -> Problem | None:
    if not isinstance(node, yaml.ScalarNode):
        return None
    name = node.tag.removeprefix(_PREFIX)
    if name == "str":
        if "\0" in node.value:
            return Problem("a value cannot contain the character U+0000", where, "remove it")
        return _interpolation_problem(node.value, where) if "${" in node.value else None
    if name == "int" and len(node.value) > _MOST_DIGITS:
        return Problem(f"a number of more than {_MOST_DIGITS} digits", where)
    try:
        loader.construct_object(node)
    except (ValueError, KeyError, IndexError):  # what PyYAML's constructors raise
        kind = {"int": "a whole number", "float": "a number"}.get(name, f"a value of the type `{name}`")
        return Problem(f"`{shown(node)}` cannot be read as {kind}", where, "quote it if it is meant as text")
    return None


def _interpolation_problem(text: str, where: str) -> Problem | None:
    try:
        parse(text)
    except GrammarParseError as error:
        return Problem(f"an interpolation cannot be read: {first_line(error)}", where)
    return None


def _key_problems(node: yaml.MappingNode, file: str, loader: _Loader) -> Iterator[Problem]:
    lines: dict[Any, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        where = f"{file}:{line}"
        if key.tag == f"{_PREFIX}merge":
            continue
        if not isinstance(key, yaml.ScalarNode):
            yield Problem(f"a key must be a word, not {kind_of(key)}", where)
            continue
        if problem := _tag_problem(key, where) or _scalar_problem(key, where, loader):
            yield problem
            continue
        name = loader.construct_object(key)
        if name is None or name != name:
            yield Problem(f"YAML reads this name as {name}", where, "if it is meant as text, quote it")
        elif name in lines:
            first = f"the key `{shown(key)}` is given twice (first in line {lines[name]})"
            yield Problem(first, where, "keep one of them")
        else:
            lines[name] = line
