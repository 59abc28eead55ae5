"""Sections are dropped at any depth; what is given twice is told."""

from __future__ import annotations

from typing import Any

import pytest

from flagscale.config.engine_args import FlatKey, flatten
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem


def flat(tree: dict[str, Any], *options: str) -> tuple[list[FlatKey], list[Problem]]:
    problems: list[Problem] = []
    return flatten("train", tree, lambda name: name in options, SourceMap(), problems), problems


def test_sections_are_dropped_at_any_depth_and_order_is_kept() -> None:
    flat_keys, problems = flat({"b": {"c": {"z": 1}, "y": None}, "a": [1]})
    assert flat_keys == [
        FlatKey("z", 1, "train.b.c.z"),
        FlatKey("y", None, "train.b.y"),
        FlatKey("a", [1], "train.a"),
    ]
    assert problems == []


def test_dashes_and_underscores_name_the_same_key() -> None:
    flat_keys, _ = flat({"seq-length": 5})
    assert flat_keys == [FlatKey("seq_length", 5, "train.seq-length")]


def test_a_mapping_is_a_value_where_the_engine_has_such_an_argument() -> None:
    flat_keys, _ = flat({"overrides": {"a": 1}, "section": {"b": 2}}, "overrides")
    assert flat_keys == [
        FlatKey("overrides", {"a": 1}, "train.overrides"),
        FlatKey("b", 2, "train.section.b"),
    ]


def test_an_empty_section_is_nothing() -> None:
    assert flat({"section": {}}) == ([], [])


def test_the_same_value_twice_is_given_once() -> None:
    flat_keys, problems = flat({"a": {"lr": 0.1}, "b": {"lr": 0.1}})
    assert flat_keys == [FlatKey("lr", 0.1, "train.a.lr")]
    assert problems == []


@pytest.mark.parametrize(
    ("one", "other"), [(0.1, 0.2), (True, 1), (False, 0), (None, 1), ([1], [1, 2]), ("1", 1)]
)
def test_different_values_are_told_with_both_places(one: object, other: object) -> None:
    _, (problem,) = flat({"a": {"lr": one}, "b": {"lr": other}})
    assert problem.where == "train.b.lr"
    assert "train.a.lr" in problem.what
    assert "`lr` is given twice with different values" in problem.what
