"""Task-level keys -> a flat list -> the engine's argv, checked against the engine's catalog of arguments.

Sections of the task level exist only for the reader and are dropped at any depth.

The engine parses the argv itself. Before any host is reached, this module refuses only what the engine would
refuse or silently misread.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flagscale.config.argument_values import structure_of, words_of
from flagscale.config.bounds import broken_bounds
from flagscale.config.catalog import Catalog, Option
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem, closest, nearest


class Unknown(enum.Enum):
    """The value of a key for which a mistake was reported already."""

    VALUE = enum.auto()


@dataclass(frozen=True)
class FlatKey:
    """One engine argument as the user wrote it: `name` with `_`, the plain value, the full key path.

    The value is `Unknown.VALUE` if the key cannot be read: only the name can be checked then.
    """

    name: str
    value: Any
    path: str


def flatten(
    group: str,
    arguments: Mapping[str, Any],
    is_option: Callable[[str], bool],
    source_map: SourceMap,
    problems: list[Problem],
    taken: Callable[[str], str] = lambda name: "",
) -> list[FlatKey]:
    """Return the flat keys below the task group `group`, in the order written.

    A mapping is a section unless `is_option(name)` says that the engine has an argument of that name that
    takes a mapping.
    The same name with different values is a problem, whose message says which place (key path) FlagScale
    v0.6.0 would have `taken`, if any; with the same value, it is returned once.
    """
    named: dict[str, list[FlatKey]] = {}
    left_out = (path for path in sorted(source_map.unreadable) if path.startswith(f"{group}."))
    unreadable = [FlatKey(leaf_name(path), Unknown.VALUE, path) for path in left_out]
    for flat_key in (*_walk(arguments, group, is_option), *unreadable):
        named.setdefault(flat_key.name, []).append(flat_key)
    return [_only(given, source_map, problems, taken) for given in named.values()]


def _only(
    given: list[FlatKey], source_map: SourceMap, problems: list[Problem], taken: Callable[[str], str]
) -> FlatKey:
    """Return the flat key that is given in these places; with different values, it is a problem."""
    first, *others = given
    if any(flat_key.value is Unknown.VALUE for flat_key in given):
        return replace(first, value=Unknown.VALUE)
    if all(_same(first.value, flat_key.value) for flat_key in others):
        return first
    *earlier, last = given
    times = "twice" if len(given) == 2 else f"{len(given)} times"
    what = f"`{first.name}` is given {times} with different values: {last.value!r} here"
    for flat_key in earlier:
        what += f", {flat_key.value!r} at {source_map.where(flat_key.path)}"
    hint = "keep one of them"
    if kept := next((flat_key for flat_key in given if flat_key.path == taken(first.name)), None):
        place = "the one here" if kept is last else source_map.where(kept.path)
        hint += f"; FlagScale v0.6.0 took {kept.value!r}, {place}"
    problems.append(Problem(what, source_map.where(last.path), hint))
    return replace(first, value=Unknown.VALUE)


def leaf_name(path: str) -> str:
    """Return the name of the argument at a key path, with `_`."""
    return path.rpartition(".")[2].replace("-", "_")


def _same(one: Any, other: Any) -> bool:
    """Return whether an engine sees two values as equal: `true` and `1` are equal only in Python."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _walk(node: Mapping[str, Any], path: str, is_option: Callable[[str], bool]) -> Iterator[FlatKey]:
    for key, value in node.items():
        name, child = leaf_name(str(key)), f"{path}.{key}"
        if isinstance(value, Mapping) and not is_option(name):
            yield from _walk(value, child, is_option)
        else:
            yield FlatKey(name, value, child)


@dataclass(frozen=True)
class EngineArguments:
    """Checked arguments: `argv` for the engine, and every argument's value by dest (defaults included)."""

    argv: tuple[str, ...]
    values: Mapping[str, Any]
    paths: Mapping[str, str]
    """dest -> key path of the arguments that the user gave."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Key path -> text that was passed on, of values that are text although YAML reads a number."""
    unknown: Mapping[str, Option] = field(default_factory=dict)
    """The arguments (by dest) that are given, but with a mistake, so that their values are not known."""
    empty: Mapping[str, str] = field(default_factory=dict)
    """dest -> key path of the arguments that are given as null, which counts as not given."""
    is_complete: bool = True
    """Whether every key below the group could be read."""


def render(
    flat_keys: Iterable[FlatKey],
    catalog: Catalog,
    source_map: SourceMap,
    problems: list[Problem],
    *,
    may_have_others: bool = False,
) -> EngineArguments:
    """Return flat keys as argv; add unknown names and wrong types, choices and ranges to `problems`.

    With `may_have_others`, because a program could not be read, only those unknown names are problems that
    are close to an argument of the catalog.
    """
    argv: list[str] = []
    values = {option.dest: option.default for option in catalog.options.values()}
    paths: dict[str, str] = {}
    texts: dict[str, str] = {}
    unknown: dict[str, Option] = {}
    misspelt: dict[str, Option] = {}
    empty: dict[str, str] = {}
    is_complete = True
    for flat_key in flat_keys:
        option = catalog.by_name.get(flat_key.name)
        if flat_key.value is Unknown.VALUE:
            if option is None:
                is_complete = False  # a section
            else:
                unknown[option.dest] = option
                paths.setdefault(option.dest, flat_key.path)
            continue
        if option is None:
            if meant := catalog.by_name.get(closest(flat_key.name, catalog.by_name) or ""):
                misspelt[meant.dest] = meant
            elif may_have_others:
                continue
            problems.append(_unknown(flat_key, catalog, source_map.where(flat_key.path)))
            continue
        if flat_key.value is None:
            empty.setdefault(option.dest, flat_key.path)
            continue
        if option.dest in paths:
            what = f"`{flat_key.name}` sets the same argument as `{paths[option.dest].rpartition('.')[2]}`"
            problems.append(Problem(what, source_map.where(flat_key.path), "keep one of them"))
            unknown[option.dest] = option
            continue
        paths[option.dest] = flat_key.path
        if option.type == "str":
            flat_key = _as_written(flat_key, source_map, texts)
        wrong: list[tuple[str, str]]
        try:
            words, value = words_of(option, flat_key.name, flat_key.value)
            wrong = [
                *broken_bounds(option.bounds, flat_key.name, structure_of(option, flat_key.value, value))
            ]
        except ValueError as error:
            wrong = [("", str(error))]
        if wrong:
            places = (f"{flat_key.path}.{path}" if path else flat_key.path for path, _ in wrong)
            whats = (what for _, what in wrong)
            problems += map(Problem, whats, map(source_map.where, places))
            unknown[option.dest] = option
            continue
        values[option.dest] = value
        argv += words
    unknown |= {dest: option for dest, option in misspelt.items() if dest not in paths}
    return EngineArguments(tuple(argv), values, paths, texts, unknown, empty, is_complete)


def _as_written(flat_key: FlatKey, source_map: SourceMap, texts: dict[str, str]) -> FlatKey:
    """Return the key of a text argument with its numbers as they were written; record them in `texts`."""

    def as_written(value: Any, path: str) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        text = source_map.text(path, value) or repr(value)
        if text != repr(value):
            texts[path] = text
        return text

    value = flat_key.value
    if isinstance(value, list):
        items = [as_written(item, f"{flat_key.path}.{index}") for index, item in enumerate(value)]
        return replace(flat_key, value=items)
    return replace(flat_key, value=as_written(value, flat_key.path))


def _unknown(flat_key: FlatKey, catalog: Catalog, where: str) -> Problem:
    hints = [nearest(flat_key.name, catalog.by_name)]
    if catalog.program and not hints[0]:
        hints.append(f"`add_arguments(parser)` in `{catalog.program}` can add it")
    if flat_key.value is None:
        hints.append("if it is an empty section, remove it")
    engine = f"{catalog.engine} {catalog.version}"
    what = f"{engine} has no argument `{flat_key.name}`"
    if catalog.program:
        what = f"neither {engine} nor `{catalog.program}` has an argument `{flat_key.name}`"
    return Problem(what, where, "; ".join(filter(None, hints)))
