"""The rule for arguments that no layers but FlagScale's own (`transformer_impl: torch`) have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.errors import Violation


def own_layer_violations(values: Mapping[str, Any], name: str, written: str) -> Iterator[Violation]:
    """Yield why an argument (by dest) would have no effect: other layers, or layers of the user's own.

    `written`: the argument as the message names it, with its value if that matters.
    """
    if (layers := values.get("transformer_impl")) != "torch":
        yield name, f"`{written}` needs `transformer_impl: torch`, not {layers}: no other layers have it"
    if values.get("spec"):
        yield name, f"`{written}` has no effect with `spec`, which defines the layers; remove one"
