"""Guidance as a user asks for it: a scale and a negative prompt, in a batch, a line of a file, or a request."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flagscale.errors import Violation

SCALE, NEGATIVE = "guidance_scale", "negative_prompt"
KEYS = (SCALE, NEGATIVE)


@dataclass(frozen=True)
class Guidance:
    """How strongly answers move away from the negative prompt, which is text or the ids of its tokens."""

    scale: float
    negative: str | tuple[int, ...]


def guidance_of(given: Mapping[str, Any]) -> Guidance | None:
    """Return the guidance that keys without violations ask for; None without them."""
    if given.get(SCALE) is None:
        return None
    negative = given[NEGATIVE]
    return Guidance(float(given[SCALE]), negative if isinstance(negative, str) else tuple(negative))


def guidance_violations(given: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield what is wrong with the two keys; null counts as not given."""
    scale, negative = given.get(SCALE), given.get(NEGATIVE)
    if scale is not None and (type(scale) not in (int, float) or not math.isfinite(scale) or scale < 0):
        yield SCALE, f"`{SCALE}` takes a number of at least 0, not {scale!r}"
    if negative is not None and not _is_prompt(negative):
        yield (
            NEGATIVE,
            f"`{NEGATIVE}` takes a text or a list of token ids that is not empty, not {negative!r}",
        )
    for present, missing in ((SCALE, NEGATIVE), (NEGATIVE, SCALE)):
        if given.get(present) is not None and given.get(missing) is None:
            yield present, f"`{present}` needs `{missing}`"


def _is_prompt(value: object) -> bool:
    if isinstance(value, str):
        return bool(value)
    return isinstance(value, list) and bool(value) and all(type(one) is int and one >= 0 for one in value)
