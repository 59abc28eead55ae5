"""Task-level keys -> a flat list -> the engine's argv, checked against the engine's catalog of arguments.

Sections of the task level exist only for the reader and are dropped at any depth.

The engine parses the argv itself. Before any host is reached, this module refuses only what the engine would
refuse or silently misread.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

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
) -> list[FlatKey]:
    """Return the flat keys below the task group `group`, in the order written.

    A mapping is a section unless `is_option(name)` says that the engine has an argument of that name that
    takes a mapping.
    The same name with different values is a problem; with the same value, it is returned once.
    """
    flat_keys: dict[str, FlatKey] = {}
    left_out = (path for path in sorted(source_map.unreadable) if path.startswith(f"{group}."))
    unreadable = [FlatKey(_name(path), Unknown.VALUE, path) for path in left_out]
    for flat_key in (*_walk(arguments, group, is_option), *unreadable):
        first = flat_keys.setdefault(flat_key.name, flat_key)
        if first is flat_key:
            continue
        if flat_key.value is Unknown.VALUE or first.value is Unknown.VALUE:
            flat_keys[flat_key.name] = replace(first, value=Unknown.VALUE)
        elif not _same(first.value, flat_key.value):
            flat_keys[flat_key.name] = replace(first, value=Unknown.VALUE)
            problems.append(
                Problem(
                    f"`{flat_key.name}` is given twice with different values: {flat_key.value!r} here, "
                    f"{first.value!r} at {source_map.where(first.path)}",
                    source_map.where(flat_key.path),
                    "keep one of them",
                )
            )
    return list(flat_keys.values())


def _name(path: str) -> str:
    return path.rpartition(".")[2].replace("-", "_")


def _same(one: Any, other: Any) -> bool:
    """Return whether an engine sees two values as equal: `true` and `1` are equal only in Python."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _walk(node: Mapping[str, Any], path: str, is_option: Callable[[str], bool]) -> Iterator[FlatKey]:
    for key, value in node.items():
        name, child = _name(str(key)), f"{path}.{key}"
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
    """Return flat keys as argv; add unknown names, wrong types and wrong choices to `problems`.

    With `may_have_others`, because a program could not be read, only those unknown names are problems that
    are close to an argument of the catalog.
    """
    argv: list[str] = []
    values = {option.dest: option.default for option in catalog.options.values()}
    paths: dict[str, str] = {}
    texts: dict[str, str] = {}
    unknown: dict[str, Option] = {}
    misspelt: dict[str, Option] = {}
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
            continue
        if option.dest in paths:
            what = f"`{flat_key.name}` sets the same argument as `{paths[option.dest].rpartition('.')[2]}`"
            problems.append(Problem(what, source_map.where(flat_key.path), "keep one of them"))
            unknown[option.dest] = option
            continue
        paths[option.dest] = flat_key.path
        if option.type == "str":
            flat_key = _as_written(flat_key, source_map, texts)
        try:
            words, values[option.dest] = _words(option, flat_key)
        except ValueError as error:
            problems.append(Problem(str(error), source_map.where(flat_key.path)))
            unknown[option.dest] = option
            continue
        argv += words
    unknown |= {dest: option for dest, option in misspelt.items() if dest not in paths}
    return EngineArguments(tuple(argv), values, paths, texts, unknown, is_complete)


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


def _words(option: Option, flat_key: FlatKey) -> tuple[list[str], Any]:
    """Return the argv words of a key and its value in the engine; raises ValueError if it is not valid."""
    flag = f"--{option.name}"
    if option.kind == "append":
        pairs = [_scalar(option, flat_key.name, item) for item in _items(flat_key.value)]
        return [word for text, _ in pairs for word in (flag, text)], [typed for _, typed in pairs]
    if option.kind != "value":
        return _switch(option, flat_key)
    if not option.takes_many:
        text, typed = _scalar(option, flat_key.name, flat_key.value)
        # `--lr=-1e-5`: a value that begins with a dash would be read as an option of its own.
        return ([f"{flag}={text}"] if text.startswith("-") else [flag, text]), typed
    items = _items(flat_key.value)
    if isinstance(option.nargs, int) and len(items) != option.nargs:
        raise ValueError(f"`{flat_key.name}` takes {option.nargs} values, not {len(items)}")
    if option.nargs == "+" and not items:
        raise ValueError(f"`{flat_key.name}` takes at least one value; if there is none, remove the key")
    pairs = [_scalar(option, flat_key.name, item) for item in items]
    for text, _ in pairs:
        if text.startswith("-") and not _NEGATIVE_NUMBER.fullmatch(text):
            raise ValueError(f"`{flat_key.name}`: a value in a list cannot begin with a dash ({text!r})")
    return [flag, *(text for text, _ in pairs)], [typed for _, typed in pairs]


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# argparse reads these as values rather than options, if no option looks like a number.
_NEGATIVE_NUMBER = re.compile(r"-\d+|-\d*\.\d+", re.ASCII)


def _switch(option: Option, flat_key: FlatKey) -> tuple[list[str], bool]:
    """Return the flag that sets the value of a key (none if it is the default), and the value."""
    flag, value = f"--{option.name}", flat_key.value
    if not isinstance(value, bool):
        raise ValueError(f"`{flat_key.name}` is a switch: use true or false, not {value!r}")
    if option.kind == "flag_false":
        named_itself = flat_key.name.replace("_", "-") == option.name
        is_off = value if named_itself else not value
        return ([flag], False) if is_off else ([], True)
    if value:
        return [flag], True
    return ([f"--{option.negative}"] if option.negative else []), False


def _scalar(option: Option, name: str, value: Any) -> tuple[str, Any]:
    """Return one value as text for the engine and as typed there; raises ValueError if it is not valid."""
    text: str
    typed: Any
    expected = _EXPECTED.get(option.type, "text")
    if value is None:
        raise ValueError(f"`{name}`: a value in the list is empty")
    if isinstance(value, bool) != (option.type == "bool"):
        quote = f' (to give it as text, quote it: "{str(value).lower()}")' if expected == "text" else ""
        raise ValueError(f"`{name}` takes {expected}, not {_yaml(value)}{quote}")
    if isinstance(value, bool):
        # The engine's `type=bool` reads every text except the empty one as true.
        return ("true" if value else ""), value
    if isinstance(value, list | dict):
        if option.type in ("int", "float"):
            raise ValueError(f"`{name}` takes {expected}, not {_yaml(value)}")
        text = typed = _structure(option.type, value)
    elif option.type in ("int", "float"):
        typed = _number(option.type, name, value)
        text = value if isinstance(value, str) else repr(typed)
    elif option.type.startswith("human_readable_int"):
        text, typed = _readable_number(option, name, value)
    else:
        text = typed = value if isinstance(value, str) else repr(value)
        if option.type in _JSON_TYPES and not _is_json(text):
            raise ValueError(f"`{name}` takes a mapping or a list (JSON), not {_yaml(value)}")
    if option.choices and text not in option.choices:
        hint = nearest(text, option.choices) or f"valid: {', '.join(option.choices)}"
        raise ValueError(f"`{name}` cannot be {text!r}; {hint}")
    return text, typed


_JSON_TYPES = ("loads", "parse_dataclass")
"""vLLM's converters that read JSON only."""


def _readable_number(option: Option, name: str, value: int | float | str) -> tuple[str, int]:
    """Return a whole number in vLLM's notation, and its value: `8k` is 8000, `8K` 8192, `auto` may be -1.

    As `vllm/utils/argparse_utils.py:human_readable_int` of vLLM 0.32: decimals only with the units of 1000.
    """
    text = str(value)
    plain = text.strip()
    if option.type.endswith("or_auto") and plain.lower() in ("auto", "-1"):
        return text, -1
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt])", plain):
        return text, int(float(found[1]) * 1000 ** ("kmgt".index(found[2]) + 1))
    if found := re.fullmatch(r"(\d+)([KMGT])", plain):
        return text, int(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1)
    try:
        return text, int(plain)
    except ValueError:
        unit = "with or without a unit: 8k is 8000, 8K is 8192, and only 8.5k may have a fraction"
        raise ValueError(f"`{name}` takes a whole number, {unit}; not {value!r}") from None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


_EXPECTED = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def _number(kind: str, name: str, value: int | float | str) -> int | float:
    try:
        number = int(value) if kind == "int" else float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"`{name}` takes {_EXPECTED[kind]}, not {value!r}") from None
    if kind == "int" and isinstance(value, float):
        raise ValueError(f"`{name}` takes a whole number, not {value!r}")
    return number


def _structure(kind: str, value: list[Any] | dict[str, Any]) -> str:
    """Return a list or mapping as one word: JSON without spaces, which the engine's patterns do not allow."""
    if kind == "tuple_type" and isinstance(value, list):
        return ",".join(map(str, value))
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _yaml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
