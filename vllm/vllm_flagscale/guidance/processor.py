"""The logits processor of guided requests, for both of vLLM's interfaces (model runners V1 and V2)."""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor as FirstInterface
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SecondInterface

from vllm_flagscale.guidance.request import ROW, Row, violations
from vllm_flagscale.guidance.sampling import combine, draw

_NEVER = float("-inf")


class GuidedProcessor(FirstInterface, SecondInterface):
    """Forces the token that a guided request draws on its row and on that of its twin."""

    @classmethod
    def validate_params(cls, params: Any) -> None:
        """Raise a ValueError for a request that is refused; the server answers with status 400."""
        if wrong := [*violations(params)]:
            raise ValueError("; ".join(wrong))

    def __init__(self, vllm_config: Any, where: Any, *rest: Any) -> None:
        # The first interface gives a device, the second one the states of its requests.
        self._states = None if isinstance(where, torch.device) else where
        self._rows: dict[int, tuple[Row, Any]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        process_dict_updates(self._rows, batch_update, self._new)

    @staticmethod
    def _new(params: Any, prompt: Any, output: Any) -> tuple[Row, Any] | None:
        row = (params.extra_args or {}).get(ROW)
        return (row, output) if row else None

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        self._rows.pop(req_idx, None)
        if row := (sampling_params.extra_args or {}).get(ROW):
            self._rows[req_idx] = (row, None)
        return bool(row)

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        if not self._rows:
            return logits
        both: dict[str, dict[bool, tuple[int, Row, int]]] = {}
        for at, row, step in self._placed(ctx):
            both.setdefault(row.request_id, {})[row.is_twin] = (at, row, step)
        complete = [(one[False], one[True]) for one in both.values() if len(one) == 2]
        if not complete:
            return logits
        guided = torch.tensor([one[0] for one, _ in complete], device=logits.device)
        twins = torch.tensor([one[0] for _, one in complete], device=logits.device)
        rows = [one[1] for one, _ in complete]
        scales = torch.tensor([row.scale for row in rows], device=logits.device)
        combined = combine(logits[guided], logits[twins], scales)
        tokens = draw(combined, rows, [one[2] for one, _ in complete])
        forced = torch.full_like(combined, _NEVER).scatter_(1, tokens.unsqueeze(1), 0.0)
        logits[guided] = forced
        logits[twins] = forced
        return logits

    def _placed(self, ctx: Any) -> list[tuple[int, Row, int]]:
        """Return (place in the logits, row, tokens generated so far) of each row."""
        if ctx is None:
            return [(at, row, len(output)) for at, (row, output) in self._rows.items()]
        placed = []
        for at, slot in enumerate(ctx.idx_mapping_np.tolist()):
            if slot in self._rows:
                length = int(ctx.seq_lens_upper_bound_np[at]) - int(self._states.prompt_len.np[slot])
                placed.append((at, self._rows[slot][0], length))
        return placed
