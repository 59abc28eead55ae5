"""The values that vLLM's configuration classes accept, as `flagscale.config.bounds` reads them.

Declared bounds come from the classes themselves, through pydantic's JSON Schema. Those that only a validator
or a constructor knows are found by trying values.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from flagscale.config.bounds import broken_bounds, types_of

_KEPT = (
    *("type", "enum", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"),
    *("items", "properties", "additionalProperties", "required", "anyOf"),
)
_FAR = 2**70


class _Accepted(GenerateJsonSchema):
    """A schema of everything that is accepted: a value that a function converts first may be anything."""

    def generate_inner(self, schema: Any) -> JsonSchemaValue:
        # A value that pydantic does not look at is of any kind, whatever its hint says.
        return {} if schema["type"] == "any" else super().generate_inner(schema)

    def dataclass_args_schema(self, schema: Any) -> JsonSchemaValue:
        given = schema.copy()
        given["fields"] = [field for field in schema["fields"] if field.get("init", True)]
        return super().dataclass_args_schema(given)

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        return {}

    def function_before_schema(self, schema: Any) -> JsonSchemaValue:
        # A function before a whole class reads its keys; before a field, it may read other types.
        inner = schema["schema"]
        return self.generate_inner(inner) if inner["type"].startswith("dataclass") else {}

    def function_plain_schema(self, schema: Any) -> JsonSchemaValue:
        return {}

    def function_wrap_schema(self, schema: Any) -> JsonSchemaValue:
        # vLLM's functions of this kind let None pass for a value that is set later.
        return {"anyOf": [self.generate_inner(schema["schema"]), {"type": "null"}]}


def declared(cls: Any) -> dict[str, Any]:
    """Return the bounds of a configuration class: `properties` by field, with those of nested classes."""
    schema = TypeAdapter(cls).json_schema(schema_generator=_Accepted)
    return dict(_plain(schema, schema.get("$defs", {})))


def _plain(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """Return a schema without what is not checked: references, titles, defaults, and fields of vLLM's own."""
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _plain(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "const" in schema:
        schema = {**schema, "enum": [schema["const"]]}
    kept: dict[str, Any] = {key: schema[key] for key in _KEPT if key in schema}
    if "properties" in kept:
        kept["properties"] = {
            name: _plain(one, definitions)
            for name, one in kept["properties"].items()
            if not name.startswith("_")
        }
    for key in ("items", "additionalProperties"):
        if key in kept:
            kept[key] = _plain(kept[key], definitions)
    if "anyOf" in kept:
        return _united([_plain(one, definitions) for one in kept["anyOf"]])
    return {key: value for key, value in kept.items() if value != {} and value is not True}


def _united(alternatives: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the bounds of values that satisfy one alternative; "null" is a type like others."""
    null = {"type": "null"}
    others = [one for one in alternatives if one != null]
    if {} in others:
        return {}
    if all(set(one) == {"type"} for one in alternatives):
        return {"type": sorted({kind for one in alternatives for kind in types_of(one)})}
    if len(others) > 1:
        return {"anyOf": alternatives}
    return {**others[0], "type": [*types_of(others[0]), "null"]} if null in alternatives else others[0]


def tried(accepts: Callable[[Any], bool], inside: float, whole: bool, ends: int = 2) -> dict[str, Any]:
    """Return the range in which `accepts` holds around the accepted number `inside`; {} if it has no ends.

    With one of the `ends`, only the lower one is looked for: what is too much may depend on other values.
    """
    found: dict[str, Any] = {}
    lower, upper = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
    for names, end in ((lower, -_FAR), (upper, _FAR))[:ends]:
        outside: float = end if whole else float(end)
        if accepts(outside):
            continue  # no end
        last, first_refused = _edge(accepts, inside, outside, whole)
        is_inclusive = whole or len(repr(last)) <= len(repr(first_refused))
        found[names[0] if is_inclusive else names[1]] = last if is_inclusive else first_refused
    return found


def with_holes(bounds: dict[str, Any], accepts: Callable[[Any], bool]) -> dict[str, Any]:
    """Return the bounds of a whole number without those small ones that are not accepted after all."""
    small = [one for one in (-1, 0, 1) if not [*broken_bounds(bounds, "", one)]]
    refused = [one for one in small if not accepts(one)]
    return {**bounds, "not": {"enum": refused}} if 0 < len(refused) < len(small) else bounds


def _edge(
    accepts: Callable[[Any], bool], accepted: float, refused: float, whole: bool
) -> tuple[float, float]:
    """Return two numbers next to each other between the given two: the last accepted, the first refused."""
    there = _same if whole else _ordered
    back = _same if whole else _number
    low, high = there(accepted), there(refused)
    while abs(high - low) > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if accepts(back(middle)) else (low, middle)
    return back(low), back(high)


def _same(number: Any) -> Any:
    return number


def _ordered(number: float) -> int:
    """Return a number's place among all floating-point numbers."""
    (bits,) = struct.unpack("<q", struct.pack("<d", number))
    return int(bits if bits >= 0 else -(bits & 0x7FFF_FFFF_FFFF_FFFF))


def _number(place: int) -> float:
    (number,) = struct.unpack("<d", struct.pack("<q", abs(place)))
    return float(number if place >= 0 else -number)
