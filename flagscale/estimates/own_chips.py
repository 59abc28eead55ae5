"""The user's file of chips (`experiment.chips`): entries in the form of the table, and other names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flagscale.config.documents import read_document
from flagscale.errors import Problem, UserError, nearest
from flagscale.planner.chips import chip_table

FIGURES = (
    "bf16_tflops_dense",
    "fp16_tflops_dense",
    "fp32_tflops_dense",
    "fp8_tflops_dense",
    "fp4_tflops_dense",
    "memory_gb",
    "hbm_gb_s",
    "tdp_w",
    "workspace_mib",
)
LINKS: Mapping[str, tuple[str, ...]] = {
    "intra_node": ("gb_s", "world"),
    "inter_node": ("gbit_s_per_card",),
}
"""The figures of each link."""
_TEXTS = ("source", "confidence", "note", "about", "protocol")
_NAMES = (*FIGURES, *LINKS, "measured", *_TEXTS)


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
        elif name in LINKS:
            yield from _wrong_link(name, value, where)
        elif name == "measured" and not isinstance(value, dict | None):
            yield Problem("`measured` must be a group of figures", where)
    measured = entry.get("measured") or {}
    if not entry.get("memory_gb") and not (isinstance(measured, dict) and measured.get("memory_gib")):
        yield Problem("`memory_gb` is required", where)


def _wrong_link(name: str, value: Any, where: str) -> Iterator[Problem]:
    if value is None:
        return
    if not isinstance(value, dict):
        yield Problem(f"`{name}` must be a group of {', '.join(LINKS[name])}", where)
        return
    for figure, number in value.items():
        if figure not in (*LINKS[name], *_TEXTS):
            yield Problem(f"unknown figure `{name}.{figure}`", where, nearest(str(figure), LINKS[name]))
        elif figure in LINKS[name]:
            yield from _wrong_number(f"{name}.{figure}", number, where)


def _wrong_number(name: str, value: Any, where: str) -> Iterator[Problem]:
    numbers = value if isinstance(value, list) else [value]
    if value is not None and (
        not numbers or not all(type(one) in (int, float) and 0 <= one < 1e9 for one in numbers)
    ):
        yield Problem(f"`{name}` must be a number, not {value!r}", where)
