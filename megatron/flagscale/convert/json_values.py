"""Judge and show values of a JSON file. Standard library only."""

from __future__ import annotations

from typing import Any, TypeGuard


def same(value: Any, other: Any) -> bool:
    """Return whether two values are equal; unlike in Python, `true` is not 1."""
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


def is_positive(value: Any) -> TypeGuard[float]:
    """Return whether a value is a positive number that fits a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e300


def is_size(value: Any) -> TypeGuard[int]:
    """Return whether a value is a positive whole number that an extent of a tensor can have."""
    return type(value) is int and 0 < value < 2**31
