"""What a rule says of arguments that break it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Finding = tuple[str, str]
"""(dest of the argument to blame, what is wrong)."""


def multiple(values: Mapping[str, Any], name: str, of: int, why: str) -> Iterator[Finding]:
    """Yield a finding where the argument is a whole number and no multiple of `of`."""
    value = values.get(name)
    if isinstance(value, int) and value % of:
        yield name, f"{name} {value} must be a multiple of {of} ({why})"
