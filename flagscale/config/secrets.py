"""Recognize secrets, which travel in the environment only, never in argv, plans, logs or printed files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

MASK = "********"

_SECRET = re.compile(r"(^|_)(key|apikey|token|secret|password|passwd|credentials?)$")
_SPECIAL_TOKEN = re.compile(r"^(fim_\w+|image|video)_token$")
"""Tokens for filling in the middle and for pictures, which are not secrets in spite of their names."""


def is_secret(name: str) -> bool:
    """Return whether a key or environment variable has the name of a secret (`*_KEY`, `*_TOKEN`, ...)."""
    plain = name.lower().replace("-", "_")
    return bool(_SECRET.search(plain)) and not _SPECIAL_TOKEN.match(plain)


def masked(tree: Any, name: str = "") -> Any:
    """Return a copy of plain configuration values with the value of every secret replaced by `MASK`."""
    if isinstance(tree, Mapping):
        return {key: masked(value, str(key)) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [masked(value, name) for value in tree]
    is_empty = tree is None or tree == "" or isinstance(tree, bool)
    return MASK if is_secret(name) and not is_empty else tree


def masks(tree: Any, path: str) -> Iterator[str]:
    """Yield the paths of secrets that are masked, because a file that FlagScale wrote does not hold them."""
    for key, value in tree.items() if isinstance(tree, Mapping) else ():
        if value == MASK and is_secret(str(key)):
            yield f"{path}.{key}"
        yield from masks(value, f"{path}.{key}")
