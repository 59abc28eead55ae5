"""Frozen classes behave like those of `dataclasses`; a start imports nothing slow that it does not need."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from flagscale import frozen

ROOT = Path(__file__).parents[2]


@frozen.dataclass(frozen=True)
class Inner:
    """A value."""

    number: int


@frozen.dataclass(frozen=True)
class Ours:
    """A value with every kind of field."""

    name: str
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()
    named: Mapping[str, Any] = frozen.field(default_factory=dict)

    @property
    def shout(self) -> str:
        return self.name.upper()


@dataclasses.dataclass(frozen=True)
class Theirs:
    """The same by the standard library."""

    name: str
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()
    named: Mapping[str, Any] = dataclasses.field(default_factory=dict)


FULL = ("a", Inner(1), (Inner(2), Inner(3)), {"k": [Inner(4)], "t": (1, "x")})


@pytest.mark.parametrize("values", [("a",), ("a", Inner(1)), FULL])
def test_values_are_made_shown_and_taken_apart_like_those_of_dataclasses(values: tuple[Any, ...]) -> None:
    ours, theirs = Ours(*values), Theirs(*values)
    assert repr(ours) == repr(theirs).replace("Theirs", "Ours")
    assert frozen.asdict(ours) == dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    assert dataclasses.replace(ours, name="b") == frozen.replace(ours, name="b") == Ours("b", *values[1:])
    assert dataclasses.is_dataclass(ours)
    ours_, theirs_ = (
        [(field.name, field.type, field.default) for field in dataclasses.fields(cls)]
        for cls in (Ours, Theirs)
    )
    assert ours_ == theirs_
    assert copy.deepcopy(ours) == pickle.loads(pickle.dumps(ours)) == ours
    assert (Ours.__match_args__, ours.shout) == (Theirs.__match_args__, "A")


def test_default_factories_make_a_value_each_time() -> None:
    assert Ours("a").named is not Ours("a").named
    assert not hasattr(Ours, "named")


@pytest.mark.parametrize(
    "make",
    [
        lambda cls: cls(),
        lambda cls: cls("a", name="b"),
        lambda cls: cls("a", other=1),
        lambda cls: cls("a", None, (), {}, 5),
        lambda cls: hash(cls("a")),  # a dictionary is among the values
    ],
)
def test_wrong_arguments_raise_the_same_type_of_error(make: Callable[[Any], object]) -> None:
    for cls in (Ours, Theirs):
        with pytest.raises(TypeError):
            make(cls)


def test_equal_values_are_equal_keys_and_other_types_never_equal() -> None:
    assert {Inner(1): "one"}[Inner(1)] == "one"
    assert Inner(1) != Inner(2)
    assert Ours("a") != Theirs("a")


def test_fields_can_be_neither_set_nor_deleted() -> None:
    value: Any = Inner(1)
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'number'"):
        value.number = 2
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot delete field 'number'"):
        del value.number
    assert value.number == 1


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("class Wrong(Inner):\n    more: int = 0", "a base class"),
        ("class Wrong:\n    one: int\n    def __post_init__(self): ...", "a method __post_init__"),
        ("class Wrong:\n    one: int\n    def __repr__(self): ...", "a method __repr__"),
        ("class Wrong:\n    one: list = []", "a default that all values would share, one"),
        ("class Wrong:\n    one: int = 0\n    two: int", "a field without a default after"),
    ],
)
def test_a_class_with_more_than_fields_is_refused(text: str, reported: str) -> None:
    """Otherwise it would lose them without a word."""
    with pytest.raises(TypeError, match=f"Wrong has {reported}"):
        exec(f"@frozen.dataclass(frozen=True)\n{text}", {"frozen": frozen, "Inner": Inner})


def test_a_start_on_a_host_imports_nothing_slow_that_it_does_not_need() -> None:
    modules = "flagscale.node.commands, flagscale.node.start, flagscale.node.supervisor"
    listing = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", f"import {modules}"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stderr  # fmt: skip
    imported = [line.rpartition("|")[2].strip() for line in listing.splitlines()]
    begin = imported.index("site") + 1  # what the environment imports is not up to us
    assert "flagscale.node.supervisor" in imported
    slow = {
        "dataclasses",
        "inspect",
        "multiprocessing",
        "tempfile",
        "random",
        "traceback",
        "importlib.metadata",
    }
    assert not slow & set(imported[begin:])
