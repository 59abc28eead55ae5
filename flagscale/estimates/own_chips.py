"""The user's file of chips (`experiment.chips`): entries in the form of the table, and other names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flagscale.config.documents import read_document
from flagscale.errors import Problem, UserError, nearest
from flagscale.planner.chips import PEAKS, chip_table
from flagscale.planner.curves import curves_of

FIGURES = (*PEAKS.values(), "memory_gb", "hbm_gb_s", "tdp_w", "workspace_mib")
GROUPS: Mapping[str, tuple[str, ...]] = {
    "intra_node": ("gb_s", "world"),
    "inter_node": ("gbit_s_per_card",),
    "usable_memory": ("gib",),
}
"""The figures of each group: of links, and of what a device reports."""
_TEXTS = ("source", "confidence", "note", "about", "protocol")
_NAMES = (*FIGURES, *GROUPS, "measured", *_TEXTS)
_TABLES = ("gemm", "grouped_gemm", "attention", "collectives")
_MEASURED = ("memory_gib", "hbm_gb_s", "tdp_w", "launch_s")
"""Names in `measured`, besides those of the shares that our own table holds."""


Entry = Mapping[str, Any] | str
"""The figures of a chip, or its name in another entry."""


def read_chips(path: Path) -> Mapping[str, Entry]:
    """Return the entries of a JSON or YAML file by name; an entry may be another chip's name: `nvidia: H100`.

    Raises:
        UserError: the file cannot be read, or entries are wrong (all mistakes are reported).
    """
    document = read_document(path)
    if document.problems:
        raise UserError(document.problems)
    problems: list[Problem] = []
    tree = document.values.get("chips", document.values)
    if not isinstance(tree, Mapping) or not tree:
        raise UserError([Problem("a file of chips holds entries by name", str(path))])
    found: dict[str, Entry] = {}
    known = {name: one for name, one in {**chip_table(), **tree}.items() if isinstance(one, Mapping)}
    for name, entry in tree.items():
        where = f"{path}: {name}"
        if isinstance(entry, str):
            if entry in known:
                found[str(name)] = entry
            else:  # or another name itself: names could go round in circles
                problems.append(Problem(f"no entry is called `{entry}`", where, nearest(entry, known)))
        elif isinstance(entry, dict):
            problems += _mistakes(entry, where)
            found[str(name)] = entry
        else:
            problems.append(Problem("an entry is a group of figures, or another chip's name", where))
    if problems:
        raise UserError(problems)
    return found


def _mistakes(entry: Mapping[str, Any], where: str) -> Iterator[Problem]:
    for name, value in entry.items():
        if name not in _NAMES:
            yield Problem(f"unknown figure `{name}`", where, nearest(str(name), _NAMES))
        elif name in FIGURES:
            yield from _wrong_number(name, value, where)
        elif name in GROUPS:
            yield from _wrong_group(name, value, where)
        elif name == "measured":
            yield from _wrong_measured(value, where)
    inside = entry.get("intra_node")
    if isinstance(inside, dict) and inside.get("gb_s") and not inside.get("world"):
        what = "`intra_node.world` is required: how many devices of a host the link joins"
        yield Problem(what, where)
    measured, reported = entry.get("measured"), entry.get("usable_memory")
    others = (isinstance(measured, dict) and measured.get("memory_gib")) or (
        isinstance(reported, dict) and reported.get("gib")
    )
    if not entry.get("memory_gb") and not others:
        yield Problem("`memory_gb` is required", where)


def _wrong_measured(value: Any, where: str) -> Iterator[Problem]:
    if not isinstance(value, dict | None):
        yield Problem("`measured` must be a group of figures", where)
        return
    given = value or {}
    figures = {*_MEASURED, *_published_shares()}
    for name, figure in given.items():
        if name not in (*figures, *_TABLES, *_TEXTS):
            yield Problem(
                f"unknown figure `measured.{name}`", where, nearest(str(name), (*_MEASURED, *_TABLES))
            )
        elif name in figures:
            yield from _wrong_number(f"measured.{name}", figure, where)
    try:
        curves_of(where.rpartition(": ")[2], given)
    except UserError as error:
        yield from (Problem(problem.what, where, problem.hint) for problem in error.problems)


def _published_shares() -> set[str]:
    """Return the names of single measured figures in our own table."""
    published = (entry.get("measured") or {} for entry in chip_table().values())
    return {name for one in published for name in one if name not in (*_TABLES, *_TEXTS)}


def _wrong_group(name: str, value: Any, where: str) -> Iterator[Problem]:
    if value is None:
        return
    if not isinstance(value, dict):
        yield Problem(f"`{name}` must be a group of {', '.join(GROUPS[name])}", where)
        return
    for figure, number in value.items():
        if figure not in (*GROUPS[name], *_TEXTS):
            yield Problem(f"unknown figure `{name}.{figure}`", where, nearest(str(figure), GROUPS[name]))
        elif figure == "world":
            if number is not None and (type(number) is not int or number < 1):
                what = f"`{name}.world` must be a whole number of at least 1, not {number!r}"
                yield Problem(what, where)
        elif figure in GROUPS[name]:
            yield from _wrong_number(f"{name}.{figure}", number, where)


def _wrong_number(name: str, value: Any, where: str) -> Iterator[Problem]:
    numbers = value if isinstance(value, list) else [value]
    if value is not None and (
        not numbers or not all(type(one) in (int, float) and 0 <= one < 1e9 for one in numbers)
    ):
        yield Problem(f"`{name}` must be a number, not {value!r}", where)
