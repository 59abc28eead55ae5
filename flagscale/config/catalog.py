"""The catalog of an engine: the arguments of its parser as plain values."""

from __future__ import annotations

import argparse
import contextlib
import enum
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Option:
    """One argument of an engine, as its parser declares it (see `catalog/`)."""

    name: str
    dest: str
    kind: Literal["value", "append", "flag_true", "flag_false", "bool_pair"]
    type: str
    nargs: str | int | None
    choices: tuple[str, ...]
    default: Any
    negative: str | None
    takes_many: bool
    """Whether a list gives several values."""
    required: bool = False
    bounds: Mapping[str, Any] = field(default_factory=dict)
    """The values that the engine accepts, as far as it declares them (see `flagscale.config.bounds`)."""


@dataclass(frozen=True)
class Catalog:
    """Every argument of one engine version."""

    engine: str
    version: str
    options: Mapping[str, Option]
    by_name: Mapping[str, Option]
    """Keyed by every name that a user can write, with `_`; a flag that turns off a default also has
    the name of what it turns off (`add_bias_linear`)."""
    program: str = ""
    """The training program whose own arguments are among the options, if it is not ours."""


def load_catalog(path: Path) -> Catalog:
    """Read a catalog made by `make catalog`."""
    return catalog_of(json.loads(path.read_text(encoding="utf-8")))


def catalog_of(raw: Mapping[str, Any]) -> Catalog:
    """Return a catalog from its JSON form: "engine", "version" and "arguments" by name (see `describe`)."""
    options: dict[str, Option] = {}
    for name, entry in raw["arguments"].items():
        option = Option(
            name=name,
            dest=entry["dest"],
            kind=entry["kind"],
            type=entry["type"],
            nargs=entry["nargs"],
            choices=tuple(str(choice) for choice in entry["choices"] or ()),
            default=entry["default"],
            negative=entry.get("negative"),
            takes_many=entry["kind"] == "value" and entry["nargs"] is not None,
            required=entry.get("required", False),
            bounds=entry.get("bounds", {}),
        )
        options[name] = option
        if option.kind == "bool_pair" and option.negative:
            options[option.negative] = replace(option, name=option.negative, kind="flag_false", negative=None)
    return catalog_from(raw["engine"], raw["version"], options)


def catalog_from(engine: str, version: str, options: Mapping[str, Option]) -> Catalog:
    """Return a catalog of these options (by name without dashes)."""
    # Some options have a second spelling with `_`; the one with dashes only comes last and wins.
    spelt = sorted(options, key=lambda name: "_" not in name)
    named = {name.replace("-", "_"): options[name] for name in spelt}
    switches = {
        option.dest: option
        for option in options.values()
        if option.kind == "flag_false" and option.dest not in named
    }
    return Catalog(engine, version, options, {**switches, **named})


_KINDS: dict[type[argparse.Action], str] = {
    argparse._StoreAction: "value",
    argparse._StoreTrueAction: "flag_true",
    argparse._StoreFalseAction: "flag_false",
    argparse._StoreConstAction: "const",
    argparse._AppendAction: "append",
    argparse._CountAction: "count",
    argparse.BooleanOptionalAction: "bool_pair",
}


def describe_actions(actions: Iterable[argparse.Action]) -> dict[str, dict[str, Any]]:
    """Describe parser actions that have a long option, keyed by its name without dashes.

    A description holds `dest`, `kind` (value, flag_true, flag_false, bool_pair, const, append, count),
    `type`, `nargs`, `choices` (as written on the command line), `default`, `required`, `help`, and
    `negative`: the option that sets the same destination to false. Further option strings of the same action
    have `alias_of`.
    """
    actions = [
        action for action in actions if _names(action) and not isinstance(action, argparse._HelpAction)
    ]
    negatives = {a.dest: _names(a)[0] for a in actions if isinstance(a, argparse._StoreFalseAction)}
    arguments: dict[str, dict[str, Any]] = {}
    for action in actions:
        name, *aliases = _names(action)
        described = _describe(action)
        if isinstance(action, argparse.BooleanOptionalAction):
            described["negative"] = aliases.pop()
        elif isinstance(action, argparse._StoreTrueAction) and action.dest in negatives:
            described["negative"] = negatives[action.dest]
        arguments[name] = described
        for alias in aliases:
            arguments[alias] = {**described, "alias_of": name}
    return arguments


def _names(action: argparse.Action) -> list[str]:
    return [option.removeprefix("--") for option in action.option_strings if option.startswith("--")]


def _describe(action: argparse.Action) -> dict[str, Any]:
    # An action class of the engine's own is assumed to take a value.
    kind = next((_KINDS[base] for base in type(action).__mro__ if base in _KINDS), "value")
    enum_type = _enum_of(action.type)
    choices = list(enum_type) if enum_type else action.choices
    return {
        "dest": action.dest,
        "kind": kind,
        "type": "bool" if kind in ("flag_true", "flag_false", "bool_pair") else _type_name(action, enum_type),
        "nargs": action.nargs,
        "choices": None if choices is None else [_plain(choice) for choice in choices],
        "default": _plain(action.default),
        "required": action.required,
        "help": " ".join((action.help or "").replace("%%", "%").split()),
    }


def _enum_of(converter: Any) -> type[enum.Enum] | None:
    """Return the enum a converter produces: an enum type itself, or a closure over one (as upstream does)."""
    if isinstance(converter, type) and issubclass(converter, enum.Enum):
        return converter
    if inspect.isfunction(converter):
        for captured in inspect.getclosurevars(converter).nonlocals.values():
            if isinstance(captured, type) and issubclass(captured, enum.Enum):
                return captured
    return None


def _type_name(action: argparse.Action, enum_type: type[enum.Enum] | None) -> str:
    if enum_type:
        return enum_type.__name__
    converter: Callable[[str], Any] | str | None = action.type
    while inspect.isfunction(converter):  # vLLM's converters to "a type or None" hold that type
        inner = inspect.getclosurevars(converter).nonlocals.get("return_type")
        if inner is None:
            break
        converter = inner
    return "str" if converter is None else getattr(converter, "__name__", str(converter))


def _plain(value: Any) -> Any:
    """Return a default or a choice as JSON; an enum member becomes its name, which is what a user writes."""
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def print_catalog(build: Callable[[], dict[str, Any]]) -> None:
    """Write a catalog to standard output; anything that an engine prints when imported goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        catalog = build()
    json.dump(catalog, sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")
