"""The values that an engine accepts, as its configuration classes declare them: ranges, types, nested keys.

Bounds are data in the catalog, in the words of JSON Schema that pydantic writes: `type`, `enum`,
`minimum`, `exclusiveMinimum`, `maximum`, `exclusiveMaximum`, `not`, `items`, `properties`,
`additionalProperties`, `required` and `anyOf`; with `dashes`, keys may be written with `-` for `_`. Anything
that is not declared is accepted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.errors import nearest

Bounds = Mapping[str, Any]
Broken = tuple[str, str]
"""(path of the value within its argument, "" for the argument itself; what is wrong)."""

_LIMITS = {
    "minimum": ("at least", lambda value, limit: value >= limit),
    "exclusiveMinimum": ("more than", lambda value, limit: value > limit),
    "maximum": ("at most", lambda value, limit: value <= limit),
    "exclusiveMaximum": ("less than", lambda value, limit: value < limit),
}
_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "a text",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}
_SWITCH_WORDS = {"0", "1", "f", "t", "n", "y", "no", "yes", "off", "on", "false", "true"}


def broken_bounds(bounds: Bounds, name: str, value: Any, path: str = "") -> Iterator[Broken]:
    """Yield everything in `value`, of the argument or key `name`, that its bounds exclude."""
    if alternatives := bounds.get("anyOf"):
        found = [[*broken_bounds(one, name, value, path)] for one in alternatives]
        if all(found):
            # The alternative that is meant is the one of the same type.
            yield from min(
                found, key=lambda broken: any(one[0] == path and _TAKES in one[1] for one in broken)
            )
        return
    types = types_of(bounds)
    if types and not any(_is(kind, value) for kind in types):
        expected = " or ".join(_TYPES[kind] for kind in types if kind != "null")
        yield path, f"`{name}`{_TAKES}{expected}, not {_written(value)}"
        return
    if value is None:
        return
    choices = bounds.get("enum")
    if choices and value not in choices:
        hint = nearest(str(value), map(str, choices))
        yield (
            path,
            f"`{name}` cannot be {_written(value)}; {hint or f'valid: {", ".join(map(str, choices))}'}",
        )
    if (number := _number(value)) is not None and not _is_within(bounds, number):
        yield path, f"`{name}` is {value}; it must be {range_of(bounds)}"
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from broken_bounds(bounds.get("items", {}), f"{name}[{index}]", item, _join(path, index))
    if isinstance(value, Mapping):
        yield from _broken_keys(bounds, name, value, path)


_TAKES = " takes "


def _broken_keys(bounds: Bounds, name: str, value: Mapping[str, Any], path: str) -> Iterator[Broken]:
    known = bounds.get("properties", {})
    others = bounds.get("additionalProperties", True)
    for key, item in value.items():
        one = known.get(str(key).replace("-", "_") if bounds.get("dashes") else key)
        if one is None and isinstance(others, Mapping):
            one = others
        if one is not None:
            yield from broken_bounds(one, f"{name}.{key}", item, _join(path, key))
        elif not others:
            hint = nearest(str(key), known)
            yield _join(path, key), f"`{name}` has no key `{key}`{f'; {hint}' if hint else ''}"
    for key in bounds.get("required", ()):
        if key not in value:
            yield path, f"`{name}` needs the key `{key}`"


def _written(value: Any) -> str:
    """Return a value as YAML has it, as far as that differs from Python."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def types_of(bounds: Bounds) -> tuple[str, ...]:
    """Return the JSON types that a value may have; empty if any."""
    types = bounds.get("type", ())
    return (types,) if isinstance(types, str) else tuple(types)


def range_of(bounds: Bounds) -> str:
    """Return a range in words: "more than 0 and at most 1"."""
    words = [f"{word} {_shown(bounds[key])}" for key, (word, _) in _LIMITS.items() if key in bounds]
    words += [f"not {one}" for one in bounds.get("not", {}).get("enum", ())]
    return " and ".join(words)


def _shown(limit: float) -> str:
    return str(int(limit) if limit == int(limit) else limit)


def _is_within(bounds: Bounds, number: float) -> bool:
    if number in bounds.get("not", {}).get("enum", ()):
        return False
    return all(holds(number, bounds[key]) for key, (_, holds) in _LIMITS.items() if key in bounds)


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float | str):
        return None
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return None


def _is(kind: str, value: Any) -> bool:
    """Return whether pydantic takes `value` as this JSON type: it reads numbers and switches in text, too."""
    match kind:
        case "integer":
            number = _number(value)
            return number is not None and number % 1 == 0
        case "number":
            return _number(value) is not None
        case "boolean":
            return isinstance(value, bool) or str(value).lower() in _SWITCH_WORDS
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, Mapping)
    return value is None


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
