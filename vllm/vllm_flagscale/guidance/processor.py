"""The logits processor of guided requests, for both of vLLM's interfaces (model runners V1 and V2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from vllm_flagscale.counted_rows import CountedRows
from vllm_flagscale.guidance.request import ROW, Row, violations
from vllm_flagscale.guidance.sampling import Draws, combine, draw
from vllm_flagscale.guidance.seams import refuse_conflicts

_NEVER = float("-inf")


@dataclass(frozen=True)
class _Rows:
    """Some rows of the logits, in the order of their places."""

    index: torch.Tensor
    view: slice | None

    @classmethod
    def of_pairs(cls, guided: Sequence[int], twins: Sequence[int], device: torch.device) -> list[_Rows]:
        """Return the rows at both places of each pair.

        Evenly spaced rows need no copies; the scheduler keeps pairs together, so that most are. Both are
        views or neither is, because a view cannot be written over rows of its own tensor by their index.
        """
        views = [_even(guided), _even(twins)]
        if None in views:
            views = [None, None]
        return [
            cls(torch.tensor(places, device=device), view)
            for places, view in zip((guided, twins), views, strict=True)
        ]

    def taken_from(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the rows: a view of the logits or a copy."""
        return logits.index_select(0, self.index) if self.view is None else logits[self.view]

    def put_into(self, logits: torch.Tensor, values: torch.Tensor) -> None:
        if self.view is None:
            logits.index_copy_(0, self.index, values)
        elif (rows := logits[self.view]).data_ptr() != values.data_ptr():
            rows.copy_(values)


def _even(places: Sequence[int]) -> slice | None:
    """Return the slice of these places, if there is one."""
    spaces = {after - before for before, after in pairwise(places)} or {1}
    is_even = len(spaces) == 1 and min(spaces) > 0
    return slice(places[0], places[-1] + 1, min(spaces)) if is_even else None


@dataclass(frozen=True)
class _Group:
    """Guided requests of the batch that are drawn with the same operations."""

    places: tuple[int, ...]
    guided: _Rows
    twins: _Rows
    scales: torch.Tensor
    draws: Draws | None
    """None at temperature 0."""

    def apply(self, logits: torch.Tensor, step_at: Callable[[int], int]) -> None:
        combined = combine(self.guided.taken_from(logits), self.twins.taken_from(logits), self.scales)
        if self.draws is None:  # equal rows have the same largest value
            for rows in (self.guided, self.twins):
                rows.put_into(logits, combined)
            return
        tokens = draw(combined, self.draws, [*map(step_at, self.places)])
        both = torch.cat((self.guided.index, self.twins.index))
        logits.index_fill_(0, both, _NEVER)
        logits[both, tokens.repeat(2)] = 0.0


def _grouped(rows: Iterable[tuple[int, Row]], vocabulary: int, device: torch.device) -> list[_Group]:
    """Return the groups of the rows (place in the logits, row) whose partner is in the batch, too."""
    twin_at: dict[str, int] = {}
    guided: list[tuple[int, Row]] = []
    for place, row in sorted(rows, key=lambda one: one[0]):
        if row.is_twin:
            twin_at[row.request_id] = place
        else:
            guided.append((place, row))
    kinds: dict[tuple[bool, ...], list[tuple[int, Row]]] = {}
    for place, row in guided:
        if row.request_id in twin_at:
            kinds.setdefault((row.temperature > 0, row.top_k > 0, row.top_p < 1), []).append((place, row))
    groups = []
    for (is_drawn, *_), members in kinds.items():
        places, of_kind = zip(*members, strict=True)
        twins = [twin_at[row.request_id] for row in of_kind]
        guided_rows, twin_rows = _Rows.of_pairs(places, twins, device)
        groups.append(
            _Group(
                places,
                guided_rows,
                twin_rows,
                torch.tensor([row.scale for row in of_kind], device=device).unsqueeze(1),
                Draws.of(of_kind, vocabulary, device) if is_drawn else None,
            )
        )
    return groups


class GuidedProcessor(CountedRows[Row]):
    """Makes a guided request and its twin sample the same token, the one that guidance asks for."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raise a ValueError for a request that is refused; the server answers with status 400."""
        if wrong := [*violations(sampling_params)]:
            raise ValueError("; ".join(wrong))

    def __init__(self, vllm_config: Any, where: Any, *rest: Any) -> None:
        """Raise a UserError for an engine that cannot guide."""
        refuse_conflicts(vllm_config)
        super().__init__(vllm_config, where, *rest)
        self._groups: list[_Group] = []

    @staticmethod
    def state_of(params: Any) -> Row | None:
        return (params.extra_args or {}).get(ROW)

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        if not self._rows:
            return logits
        if self.have_moved(ctx):
            self._groups = _grouped(self.placed(ctx), logits.shape[1], logits.device)
        for group in self._groups:
            group.apply(logits, partial(self.length_at, ctx))
        return logits
