"""One value of a key -> the words of the engine's command line, or why the engine would not accept it."""

from __future__ import annotations

import json
import re
from typing import Any

from flagscale.config.catalog import Option
from flagscale.errors import nearest


def words_of(option: Option, name: str, value: Any) -> tuple[list[str], Any]:
    """Return the argv words of a key and its value in the engine; raises ValueError if it is not valid."""
    flag = f"--{option.name}"
    if option.kind == "append":
        pairs = [_scalar(option, name, item) for item in _items(value)]
        return [word for text, _ in pairs for word in (flag, text)], [typed for _, typed in pairs]
    if option.kind != "value":
        return _switch(option, name, value)
    if not option.takes_many:
        text, typed = _scalar(option, name, value)
        # `--lr=-1e-5`: a value that begins with a dash would be read as an option of its own.
        return ([f"{flag}={text}"] if text.startswith("-") else [flag, text]), typed
    items = _items(value)
    if isinstance(option.nargs, int) and len(items) != option.nargs:
        raise ValueError(f"`{name}` takes {option.nargs} values, not {len(items)}")
    if option.nargs == "+" and not items:
        raise ValueError(f"`{name}` takes at least one value; if there is none, remove the key")
    pairs = [_scalar(option, name, item) for item in items]
    for text, _ in pairs:
        if text.startswith("-") and not _NEGATIVE_NUMBER.fullmatch(text):
            raise ValueError(f"`{name}`: a value in a list cannot begin with a dash ({text!r})")
    return [flag, *(text for text, _ in pairs)], [typed for _, typed in pairs]


def structure_of(option: Option, given: Any, typed: Any) -> Any:
    """Return the value that the engine gets: as `typed` by `words_of`, but JSON as the mapping it holds."""
    if option.takes_many or option.kind == "append" or option.type == "tuple_type":
        return typed
    if isinstance(given, str) and option.type in _JSON_TYPES:
        return _structure_in(option.type, given)
    return given if isinstance(given, list | dict) else typed


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# argparse reads these as values rather than options, if no option looks like a number.
_NEGATIVE_NUMBER = re.compile(r"-\d+|-\d*\.\d+", re.ASCII)


def _switch(option: Option, name: str, value: Any) -> tuple[list[str], bool]:
    """Return the flag that sets the value of a key (none if it is the default), and the value."""
    flag = f"--{option.name}"
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` is a switch: use true or false, not {value!r}")
    if option.kind == "flag_false":
        named_itself = name.replace("_", "-") == option.name
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
        if option.type in _JSON_TYPES:
            try:
                _structure_in(option.type, text)
            except (ValueError, OverflowError):
                what = f"`{name}` takes a mapping or a list (JSON), not {_yaml(value)}"
                raise ValueError(what) from None
    if option.choices and text not in option.choices:
        hint = nearest(text, option.choices) or f"valid: {', '.join(option.choices)}"
        raise ValueError(f"`{name}` cannot be {text!r}; {hint}")
    return text, typed


_JSON_TYPES = ("loads", "parse_dataclass", "union_dict_and_str")
"""vLLM's converters of JSON; the last one takes other texts as they are."""


def _readable_number(option: Option, name: str, value: int | float | str) -> tuple[str, int]:
    """Return a whole number in vLLM's notation, and its value: `8k` is 8000, `8K` 8192, `auto` may be -1."""
    text = str(value)
    if option.type.endswith("or_auto") and text.strip().lower() in ("auto", "-1"):
        return text, -1
    try:
        return text, _readable_int(text)
    except (ValueError, OverflowError):
        unit = "with or without a unit: 8k is 8000, 8K is 8192, and only 8.5k may have a fraction"
        raise ValueError(f"`{name}` takes a whole number, {unit}; not {value!r}") from None


def _readable_int(text: str) -> int:
    """Return the value of a number that may have a unit; decimals are valid only with the units of 1000.

    As `vllm/utils/argparse_utils.py:human_readable_int` of vLLM 0.32. Raises ValueError or OverflowError.
    """
    plain = text.strip()
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt])", plain):
        return int(float(found[1]) * 10 ** (3 * "kmgt".index(found[2]) + 3))
    if found := re.fullmatch(r"(\d+)([KMGT])", plain):
        return int(found[1]) << 10 * ("KMGT".index(found[2]) + 1)
    return int(plain)


def _structure_in(kind: str, text: str) -> Any:
    """Return what vLLM's converter of that name makes of a text; raises ValueError or OverflowError."""
    if kind == "union_dict_and_str" and not re.fullmatch(r"(?s)\s*{.*}\s*", text):
        return text
    return json.loads(_without_units(text) if kind == "parse_dataclass" else text)


def _without_units(text: str) -> str:
    """Return JSON for a text that may have units outside of its strings: `{"cpu_bytes": 80m}`."""
    pieces = re.split(r'("(?:[^"\\]|\\.)*")', text)
    sizes = re.compile(r"\b\d+(?:\.\d+)?[kKmMgGtT]\b")
    pieces[::2] = [sizes.sub(lambda size: str(_readable_int(size[0])), piece) for piece in pieces[::2]]
    return "".join(pieces)


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
