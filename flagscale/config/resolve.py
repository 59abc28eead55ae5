"""A composed configuration as plain values: interpolations are resolved one by one, and all failures kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flagscale.config.blanks import blank_interpolation, blank_text
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem, first_line


def resolve(config: DictConfig, source_map: SourceMap) -> tuple[dict[str, Any], dict[str, Problem]]:
    """Return the values, and by key path the problem of each key that has none; such keys are left out."""
    failed: dict[str, Problem] = {}
    tree: dict[str, Any] = _resolved(config, "", (), source_map, failed)
    for path, problem in list(_base60(tree, source_map)):
        failed[path] = problem
        _remove(tree, path.split("."))
    return tree, failed


def _resolved(
    node: Any, path: str, parents: tuple[Any, ...], source_map: SourceMap, failed: dict[str, Problem]
) -> Any:
    if not isinstance(node, DictConfig | ListConfig):
        return node
    if node._is_none():
        return None
    if any(node is parent for parent in parents):
        failed[path] = Problem("the interpolation refers to itself", source_map.where(path))
        return None
    values = dict(_children(node, path, (*parents, node), source_map, failed))
    return values if isinstance(node, DictConfig) else list(values.values())


def _children(
    node: DictConfig | ListConfig,
    path: str,
    parents: tuple[Any, ...],
    source_map: SourceMap,
    failed: dict[str, Problem],
) -> Iterator[tuple[Any, Any]]:
    keys: list[Any] = list(node.keys()) if isinstance(node, DictConfig) else list(range(len(node)))
    for key in keys:
        child = f"{path}.{key}" if path else str(key)
        where = source_map.where(child)
        # Further down, a key may belong to a mapping that an engine takes, which may have numbers.
        is_name = path.startswith("experiment.") or "." not in path
        if isinstance(node, DictConfig) and not isinstance(key, str) and is_name:
            what, hint = f"YAML reads this name as {key}", "if it is meant as text, quote it"
            failed[child] = Problem(what, where, hint)
            continue
        try:
            if OmegaConf.is_missing(node, key):
                failed[child] = Problem("a value is required here (it is `???`)", where)
                continue
            value = node[key]
        except OmegaConfBaseException as error:
            failed[child] = _unresolved(error, child, str(node._get_node(key)), where)
            continue
        is_named_text = isinstance(node, DictConfig) and isinstance(value, str)
        if is_named_text and (blank := blank_text(child, value, where)):
            failed[child] = blank
            continue
        yield key, _resolved(value, child, parents, source_map, failed)


def _unresolved(error: OmegaConfBaseException, path: str, text: str, where: str) -> Problem:
    """Return the problem of an interpolation; `${HOME}` is probably meant as an environment variable."""
    if blank := blank_interpolation(path, text, where):
        return blank
    name = re.search(r"Interpolation key '([A-Z_][A-Z0-9_]*)' not found", str(error))
    hint = f"to insert an environment variable of this machine, write ${{oc.env:{name[1]}}}" if name else ""
    return Problem(first_line(error), where, hint)


_BASE_60 = re.compile(r"[-+]?[1-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")


def _base60(tree: dict[str, Any], source_map: SourceMap) -> Iterator[tuple[str, Problem]]:
    """Yield (key path, problem) of each value that YAML 1.1 reads as base 60; a range or a time is meant."""
    for path, text in source_map.texts.items():
        if not _BASE_60.fullmatch(text):
            continue
        value: Any = tree
        for part in path.split("."):
            if isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            else:
                value = value.get(part) if isinstance(value, dict) else None
        where = source_map.where(path)
        if isinstance(value, int | float) and not where.startswith("command line"):
            yield path, Problem(f"YAML reads `{text}` as the number {value}", where, f'quote it: "{text}"')


def _remove(tree: Any, path: list[str]) -> None:
    """Remove a key; instead of an item, the whole list."""
    for part in path[:-1]:
        if not isinstance(tree.get(part), dict):
            tree.pop(part, None)
            return
        tree = tree[part]
    tree.pop(path[-1], None)
