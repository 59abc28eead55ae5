"""What a guided request carries in `SamplingParams.extra_args`, and which requests are refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flagscale.checks.guidance import NEUTRAL, scale_violations

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


def violations(params: Any, vocabulary: int | None = None, max_model_len: int | None = None) -> Iterator[str]:
    """Yield why a request that asks for guidance is refused.

    Without `vocabulary` and `max_model_len`, which the frontend's hook does not know, the ids and the length
    of the negative prompt are not compared with them.
    """
    given = params.extra_args or {}
    if ROW in given:
        yield f"`{ROW}` is reserved for the scheduler"
    scale, negative = given.get(SCALE), given.get(NEGATIVE)
    if scale is None:
        if negative is not None:
            yield f"`{NEGATIVE}` needs `{SCALE}`"
        return
    yield from scale_violations(scale)
    yield from _negative_violations(negative, vocabulary, max_model_len)
    if is_guided(params):
        yield from _combination_violations(params)


def _negative_violations(negative: Any, vocabulary: int | None, max_model_len: int | None) -> Iterator[str]:
    if not isinstance(negative, list) or not negative or not all(type(i) is int and i >= 0 for i in negative):
        yield f"`{NEGATIVE}` takes a list of token ids that is not empty"
        return
    yield from id_violations(NEGATIVE, negative, vocabulary, max_model_len)


def id_violations(
    name: str, ids: Sequence[int], vocabulary: int | None, max_model_len: int | None
) -> Iterator[str]:
    """Yield why an engine cannot take ids as a negative prompt, which the user gave as `name`."""
    if vocabulary is not None and (largest := max(ids)) >= vocabulary:
        yield f"`{name}`: {largest} is not an id of the model's {vocabulary} tokens"
    if max_model_len is not None and len(ids) >= max_model_len:
        what = f"`{name}` has {len(ids)} tokens; the limit is {max_model_len}, including the answer"
        yield f"{what}; shorten it or raise max_model_len"


def _combination_violations(params: Any) -> Iterator[str]:
    """Yield the fields that change tokens after both rows have been combined, or in one row only."""
    for name, value in NEUTRAL.items():
        if (given := getattr(params, name)) != value:
            yield f"`{name}` {given} cannot be combined with `{SCALE}`; set it to {value}"
    for name in ("thinking_token_budget", "trace_decode_token_ids"):
        if getattr(params, name) is not None:
            yield f"`{name}` cannot be combined with `{SCALE}`; remove it"
