"""The logits processor that makes every answer to a picture request a picture of the size asked for.

It has to come before that of guidance, which draws the token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from flagscale.checks.emu3 import Grid
from flagscale.checks.emu3_vocabulary import vocabulary_of
from vllm_flagscale.counted_rows import CountedRows
from vllm_flagscale.emu3.grammar import GRID, only_token

_NEVER = float("-inf")
_REFUSED = (
    "stop",
    "stop_token_ids",
    "allowed_token_ids",
    "structured_outputs",
    "repetition_detection",
    "thinking_token_budget",
    "trace_decode_token_ids",
)
"""Parameters that end an answer early, or choose its tokens after or against the grammar of a picture."""


class GridProcessor(CountedRows[Grid]):
    """Masks all tokens that cannot follow in a picture, in the row of its request and in that of its twin."""

    @classmethod
    def validate_params(cls, params: Any) -> None:
        """Raise a ValueError for a request that is refused; the server answers with status 400."""
        if wrong := [*violations(params)]:
            raise ValueError("; ".join(wrong))

    def __init__(self, vllm_config: Any, where: Any, *rest: Any) -> None:
        super().__init__(vllm_config, where, *rest)
        config = vllm_config.model_config.hf_config
        if config.model_type != "emu3":
            raise ValueError(f"pictures need an Emu3 model; this one is `{config.model_type}`")
        self._vocabulary = vocabulary_of(config.vocabulary_map, config.vq_config.codebook_size)

    @staticmethod
    def state_of(params: Any) -> Grid | None:
        sides = (params.extra_args or {}).get(GRID)
        return Grid(*sides) if sides else None

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        if not self._rows:
            return logits
        free: list[int] = []
        bound: list[tuple[int, int]] = []
        for at, grid in self.placed(ctx):
            token = only_token(grid, self._vocabulary, self.length_at(ctx, at))
            if token is None:
                free.append(at)
            else:
                bound.append((at, token))
        if free:
            rows = torch.tensor(free, device=logits.device)
            first = self._vocabulary.first_code
            logits[:, :first].index_fill_(0, rows, _NEVER)
            logits[:, first + self._vocabulary.codes :].index_fill_(0, rows, _NEVER)
        if bound:
            rows, tokens = torch.tensor(bound, device=logits.device).T
            logits.index_fill_(0, rows, _NEVER)
            logits[rows, tokens] = 0.0
        return logits


def _is_lower(params: Any, grid: Grid) -> bool:
    return params.max_tokens is not None and params.max_tokens < grid.tokens


def violations(params: Any) -> Iterator[str]:
    """Yield why a request for a picture is refused."""
    if (sides := (params.extra_args or {}).get(GRID)) is None:
        return
    if (
        not isinstance(sides, list)
        or len(sides) != 2
        or any(type(one) is not int or one < 1 for one in sides)
    ):
        yield f"`{GRID}` takes the height and the width of a picture in codes, not {sides!r}"
        return
    grid = Grid(*sides)
    if params.max_tokens != grid.tokens:
        what = f"`max_tokens` must be {grid.tokens} for a picture of {grid.size} pixels"
        # Lowered by vLLM's server to what a prompt leaves of `max_model_len`, if it is less than that.
        remedy = "; picture and prompt must fit into `max_model_len`" if _is_lower(params, grid) else ""
        yield f"{what}, not {params.max_tokens}{remedy}"
    for name in _REFUSED:
        if getattr(params, name):
            yield f"`{name}` cannot be combined with a picture"
