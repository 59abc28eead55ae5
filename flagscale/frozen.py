"""Frozen dataclasses that are cheap to define. The functions of `dataclasses` accept them.

`dataclasses.dataclass` compiles six methods for each class, and importing it imports `inspect`: together a
third of the CPU time that a host's process needed before it could start a job. The classes made here share
their methods, and `asdict` and `replace` need no import either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import asdict, dataclass, field, replace
    from typing import Any
else:

    def dataclass(*, frozen: bool) -> Callable[[type], type]:
        """Return the decorator of a class; only `frozen=True`, only fields with or without defaults."""
        assert frozen
        return _made

    def field(*, default_factory: Callable[[], Any]) -> _Factory:
        """Return the default of a field that is made anew for each value."""
        return _Factory(default_factory)

    def replace(value: Any, /, **changes: Any) -> Any:
        """Return a copy with other values in some fields."""
        return type(value)(**{**value.__dict__, **changes})

    def asdict(value: Any) -> dict[str, Any]:
        """Return a value, and all values within it, as dictionaries."""
        return {name: _plain(item) for name, item in value.__dict__.items()}


__all__ = ["asdict", "dataclass", "field", "replace"]


_METHODS = {"__init__", "__post_init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__"}


class _Factory:
    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


class _Fields:
    """The fields of a class as `dataclasses` describes them, which it looks up in `__dataclass_fields__`."""

    def __init__(self, annotations: Mapping[str, str], defaults: Mapping[str, Any]) -> None:
        self.annotations, self.defaults = annotations, defaults

    def __get__(self, value: object, owner: type) -> Mapping[str, Any]:
        import dataclasses  # here, because a start of a job does not need it

        fields = [
            (name, kind, _described(self.defaults[name]) if name in self.defaults else dataclasses.field())
            for name, kind in self.annotations.items()
        ]
        twin: Any = dataclasses.make_dataclass(owner.__name__, fields, frozen=True)
        found: Mapping[str, Any] = twin.__dataclass_fields__
        owner.__dataclass_fields__ = found  # type: ignore[attr-defined]
        return found


def _described(default: Any) -> Any:
    import dataclasses

    if isinstance(default, _Factory):
        return dataclasses.field(default_factory=default.make)
    return dataclasses.field(default=default)


def _made(cls: Any) -> type:
    annotations = dict(cls.__annotations__)
    defaults = {name: cls.__dict__[name] for name in annotations if name in cls.__dict__}
    if unsupported := _unsupported(cls, annotations, defaults):
        raise TypeError(f"{cls.__qualname__} has {unsupported}: make it with `dataclasses`")
    for name, default in defaults.items():
        if isinstance(default, _Factory):
            delattr(cls, name)
    cls.__match_args__ = tuple(annotations)  # type: ignore[misc]
    cls.__dataclass_fields__ = _Fields(annotations, defaults)
    cls.__frozen_defaults__ = defaults
    for method in (__init__, __repr__, __eq__, __hash__, __setattr__, __delattr__):
        setattr(cls, method.__name__, method)
    made: type = cls
    return made


def _unsupported(cls: Any, annotations: Mapping[str, str], defaults: Mapping[str, Any]) -> str:
    """Return what a class has that would silently be ignored here; "" if there is nothing."""
    if cls.__bases__ != (object,):
        return "a base class"
    if own := _METHODS & {*vars(cls)}:
        return f"a method {min(own)}"
    if shared := [name for name, default in defaults.items() if isinstance(default, list | dict | set)]:
        return f"a default that all values would share, {shared[0]}"
    names = [*annotations]
    if names != sorted(names, key=lambda name: name in defaults):
        return "a field without a default after one with a default"
    return ""


def __init__(self: Any, *args: Any, **named: Any) -> None:
    names, defaults = self.__match_args__, self.__frozen_defaults__
    if len(args) > len(names):
        raise TypeError(f"{_name(self)}() takes {len(names)} values but {len(args)} were given")
    given = dict(zip(names, args, strict=False))
    if wrong := [name for name in named if name not in names or name in given]:
        what = "multiple values for" if wrong[0] in given else "an unexpected"
        raise TypeError(f"{_name(self)}() got {what} argument {wrong[0]!r}")
    given |= named
    if missing := [name for name in names if name not in given and name not in defaults]:
        raise TypeError(f"{_name(self)}() misses required arguments: {', '.join(missing)}")
    values = self.__dict__
    for name in names:
        if name in given:
            values[name] = given[name]
        else:
            default = defaults[name]
            values[name] = default.make() if isinstance(default, _Factory) else default


def __repr__(self: Any) -> str:
    values = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
    return f"{_name(self)}({values})"


def __eq__(self: Any, other: object) -> bool:
    return _values(self) == _values(other) if other.__class__ is self.__class__ else NotImplemented


def __hash__(self: Any) -> int:
    return hash(_values(self))


def __setattr__(self: Any, name: str, value: object) -> None:
    _refuse("assign to", name)


def __delattr__(self: Any, name: str) -> None:
    _refuse("delete", name)


def _refuse(what: str, name: str) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot {what} field {name!r}")


def _values(value: Any) -> tuple[Any, ...]:
    return tuple(getattr(value, name) for name in value.__match_args__)


def _name(value: object) -> str:
    return type(value).__qualname__


def _plain(item: Any) -> Any:
    if hasattr(type(item), "__frozen_defaults__"):
        return {name: _plain(value) for name, value in item.__dict__.items()}
    if isinstance(item, dict):
        return {_plain(key): _plain(value) for key, value in item.items()}
    return type(item)(map(_plain, item)) if isinstance(item, list | tuple) else item
