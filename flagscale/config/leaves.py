"""The task level as a flat list: sections are there for the reader only and are dropped at any depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flagscale.config.locate import Locator
from flagscale.errors import Problem


@dataclass(frozen=True)
class Leaf:
    """One engine argument as the user wrote it: `name` with `_`, the plain value, the full key path."""

    name: str
    value: Any
    path: str


def flatten(
    group: str,
    arguments: Mapping[str, Any],
    is_option: Callable[[str], bool],
    locator: Locator,
    problems: list[Problem],
) -> list[Leaf]:
    """Return the leaves below the task group `group`, in the order written.

    A mapping is a section unless `is_option(name)` says that the engine has an argument of that name that
    takes one (`model` with keys below it is a section all the same when it stands at the top level).
    The same name with different values is a problem; with the same value it is given once.
    """
    leaves: dict[str, Leaf] = {}
    for leaf in _walk(arguments, group, is_option):
        first = leaves.setdefault(leaf.name, leaf)
        if not _same(first.value, leaf.value):
            problems.append(
                Problem(
                    f"`{leaf.name}` is given twice with different values: {leaf.value!r} here, "
                    f"{first.value!r} at {locator.where(first.path)}",
                    locator.where(leaf.path),
                    "keep one of them",
                )
            )
    return list(leaves.values())


def _same(one: Any, other: Any) -> bool:
    """Whether two values are written alike: `true` and `1` are equal in Python, and differ for an engine."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _walk(node: Mapping[str, Any], path: str, is_option: Callable[[str], bool]) -> Iterator[Leaf]:
    for key, value in node.items():
        name, child = str(key).replace("-", "_"), f"{path}.{key}"
        if isinstance(value, Mapping) and not is_option(name):
            yield from _walk(value, child, is_option)
        else:
            yield Leaf(name, value, child)
