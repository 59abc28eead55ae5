"""Task-level keys -> the engine's argv, checked against the engine's catalog of arguments.

The engine parses the argv itself; this module only refuses what it would refuse, or would silently not
understand, before any host is reached.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flagscale.config.leaves import Leaf
from flagscale.config.locate import Locator
from flagscale.errors import Problem, nearest


@dataclass(frozen=True)
class Option:
    """One argument of an engine, as its parser declares it (see `catalog/`)."""

    name: str
    dest: str
    kind: Literal["value", "flag_true", "flag_false", "bool_pair"]
    type: str
    nargs: str | int | None
    choices: tuple[str, ...]
    default: Any
    negative: str | None

    @property
    def takes_many(self) -> bool:
        return self.kind == "value" and self.nargs is not None


@dataclass(frozen=True)
class Catalog:
    """Every argument of one engine version. `switches`: the flags that turn off what is on by default, by dest."""

    engine: str
    version: str
    options: Mapping[str, Option]
    switches: Mapping[str, Option]

    def find(self, name: str) -> Option | None:
        """Return the option written as `name` with `_`, e.g. `num_layers`; also `add_bias_linear` for its switch."""
        return self.options.get(name.replace("_", "-")) or self.switches.get(name)

    def names(self) -> set[str]:
        return {name.replace("-", "_") for name in self.options} | self.switches.keys()


@dataclass(frozen=True)
class EngineArguments:
    """Checked arguments: `argv` for the engine, and every argument's value by dest (defaults included)."""

    argv: tuple[str, ...]
    values: Mapping[str, Any]
    paths: Mapping[str, str]
    """dest -> key path of the arguments that the user gave."""


def load_catalog(path: Path) -> Catalog:
    """Read a catalog made by `make catalog`."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    options = {
        name: Option(
            name=name,
            dest=entry["dest"],
            kind=entry["kind"],
            type=entry["type"],
            nargs=entry["nargs"],
            choices=tuple(str(choice) for choice in entry["choices"] or ()),
            default=entry["default"],
            negative=entry.get("negative"),
        )
        for name, entry in raw["arguments"].items()
    }
    named = {option.replace("-", "_") for option in options}
    switches = {
        option.dest: option
        for option in options.values()
        if option.kind == "flag_false" and option.dest not in named
    }
    return Catalog(raw["engine"], raw["version"], options, switches)


def render(leaves: Iterable[Leaf], catalog: Catalog, locator: Locator, problems: list[Problem]) -> EngineArguments:
    """Turn checked leaves into argv; unknown names, wrong types and choices go to `problems`."""
    argv: list[str] = []
    values = {option.dest: option.default for option in catalog.options.values()}
    paths: dict[str, str] = {}
    for leaf in leaves:
        where = locator.where(leaf.path)
        option = catalog.find(leaf.name)
        if option is None:
            problems.append(_unknown(leaf, catalog, where))
            continue
        if option.dest in paths:
            what = f"`{leaf.name}` sets the same argument as `{paths[option.dest].rpartition('.')[2]}`"
            problems.append(Problem(what, where, "keep one of them"))
            continue
        if leaf.value is None:
            continue
        paths[option.dest] = leaf.path
        try:
            words, value = _words(option, leaf)
        except ValueError as error:
            problems.append(Problem(str(error), where))
            continue
        argv += words
        values[option.dest] = value
    return EngineArguments(tuple(argv), values, paths)


def _unknown(leaf: Leaf, catalog: Catalog, where: str) -> Problem:
    hint = nearest(leaf.name, catalog.names())
    what = f"{catalog.engine} {catalog.version} has no argument `{leaf.name}`"
    if leaf.value is None:
        hint = hint or "if it is an empty section, remove it"
    return Problem(what, where, hint)


def _words(option: Option, leaf: Leaf) -> tuple[list[str], Any]:
    """Return the argv words of one leaf and its value as the engine will hold it; ValueError if it cannot."""
    flag, value = f"--{option.name}", leaf.value
    if option.kind != "value":
        if not isinstance(value, bool):
            raise ValueError(f"`{leaf.name}` is a switch: true or false, not {value!r}")
        if option.kind == "bool_pair":
            return [flag if value else f"--{option.negative}"], value
        if option.kind == "flag_false":
            off = value if leaf.name.replace("_", "-") == option.name else not value
            return ([flag], False) if off else ([], True)
        return ([flag], True) if value else ([f"--{option.negative}"] if option.negative else [], False)
    if not option.takes_many:
        text, typed = _scalar(option, leaf.name, value)
        # `--lr=-1e-5`: a value that begins with a dash would be read as an option of its own.
        return ([f"{flag}={text}"] if text.startswith("-") else [flag, text]), typed
    items = value if isinstance(value, list) else [value]
    if not items and option.nargs == "+" or isinstance(option.nargs, int) and len(items) != option.nargs:
        raise ValueError(f"`{leaf.name}` takes {option.nargs if option.nargs != '+' else 'one or more'} values")
    pairs = [_scalar(option, leaf.name, item) for item in items]
    for text, _ in pairs:
        if text.startswith("-") and not text[1:].replace(".", "", 1).isdigit():
            raise ValueError(f"`{leaf.name}`: a value in a list cannot begin with a dash ({text!r})")
    return [flag, *(text for text, _ in pairs)], [typed for _, typed in pairs]


def _scalar(option: Option, name: str, value: Any) -> tuple[str, Any]:
    typed: Any
    if value is None:
        raise ValueError(f"`{name}`: a value in the list is empty")
    if isinstance(value, bool):
        raise ValueError(f"`{name}` takes {_article(option.type)}, not {str(value).lower()}")
    if isinstance(value, dict | list):
        if option.type in ("int", "float"):
            raise ValueError(f"`{name}` takes one {_noun(option.type)}, not {json.dumps(value)}")
        text = typed = json.dumps(value, ensure_ascii=False)
    elif option.type in ("int", "float"):
        typed = _number(option.type, name, value)
        text = str(value) if isinstance(value, str) else repr(typed)
    else:
        text = typed = value if isinstance(value, str) else repr(value)
    if option.choices and text not in option.choices:
        hint = nearest(text, option.choices) or f"valid: {', '.join(option.choices)}"
        raise ValueError(f"`{name}` cannot be {text!r}; {hint}")
    return text, typed


def _number(kind: str, name: str, value: Any) -> int | float:
    try:
        number = float(value)
        if kind == "float":
            return number
        if isinstance(value, int | str):
            return int(value)
    except ValueError:
        pass
    raise ValueError(f"`{name}` takes {_article(kind)}, not {value!r}")


def _noun(kind: str) -> str:
    return {"int": "whole number", "float": "number"}.get(kind, "text")


def _article(kind: str) -> str:
    return kind in ("int", "float") and f"a {_noun(kind)}" or "text"
