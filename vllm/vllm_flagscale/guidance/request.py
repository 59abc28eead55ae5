"""What a guided request carries in `SamplingParams.extra_args`, and which requests are refused."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

SCALE = "guidance_scale"
NEGATIVE = "negative_prompt_token_ids"
ROW = "guided_row"
"""The scheduler's own key in `extra_args`: a `Row`, for the processor."""


@dataclass(frozen=True)
class Row:
    """One of the two rows of a guided request, as the processor sees it."""

    request_id: str
    """The id of the guided request, also in the row of its twin."""
    is_twin: bool
    scale: float
    seed: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def extra_args(scale: float, negative: Sequence[int]) -> dict[str, Any]:
    """Return the `extra_args` that ask for guidance."""
    return {SCALE: scale, NEGATIVE: list(negative)}


def is_guided(params: Any) -> bool:
    """Return whether the request needs a twin: a scale of 1 is an ordinary request."""
    given = (params.extra_args or {}) if params is not None else {}
    return given.get(SCALE) is not None and given[SCALE] != 1


def violations(params: Any, vocabulary: int | None = None) -> Iterator[str]:
    """Yield why a request that asks for guidance is refused."""
    given = params.extra_args or {}
    if ROW in given:
        yield f"`{ROW}` is reserved for the scheduler"
    scale, negative = given.get(SCALE), given.get(NEGATIVE)
    if scale is None:
        if negative is not None:
            yield f"`{NEGATIVE}` needs `{SCALE}`"
        return
    if type(scale) not in (int, float) or not math.isfinite(scale) or scale < 0:
        yield f"`{SCALE}` takes a number of at least 0, not {scale!r}"
    if not isinstance(negative, list) or not negative or not all(type(i) is int and i >= 0 for i in negative):
        yield f"`{NEGATIVE}` takes a list of token ids that is not empty"
    elif vocabulary is not None and max(negative) >= vocabulary:
        yield f"`{NEGATIVE}`: {max(negative)} is not an id of the model's {vocabulary} tokens"
    if params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty:
        yield f"penalties cannot be combined with `{SCALE}`"
