"""Secrets: they travel in the environment only, never in argv, plans, logs or a printed configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MASK = "********"


def is_secret(name: str) -> bool:
    """Whether a key or environment variable holds a secret, by its name (`*_KEY`, `*_TOKEN`, `*_SECRET`, ...)."""
    return name.lower().replace("-", "_").endswith(("_key", "_token", "_secret", "_password"))


def masked(tree: Any, name: str = "") -> Any:
    """Return a copy of plain configuration values with every secret text replaced by `MASK`."""
    if isinstance(tree, Mapping):
        return {key: masked(value, str(key)) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [masked(value, name) for value in tree]
    return MASK if isinstance(tree, str) and tree and is_secret(name) else tree
