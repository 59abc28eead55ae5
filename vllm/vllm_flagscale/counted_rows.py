"""A logits processor for both of vLLM's interfaces that knows how many tokens each of its rows has generated.

Model runner V1 calls `update_state` and `apply(logits)`; V2 calls `add_request` and `apply(logits, ctx)`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor as FirstInterface
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SecondInterface


class CountedRows[State](FirstInterface, SecondInterface):
    """Keeps a state per row, for the rows that the processor changes."""

    def __init__(self, vllm_config: Any, where: Any, *rest: Any) -> None:
        # The first interface gives a device, the second one the states of its requests.
        self._requests = None if isinstance(where, torch.device) else where
        self._rows: dict[int, tuple[State, Any]] = {}

    @staticmethod
    @abstractmethod
    def state_of(params: Any) -> State | None:
        """Return what a request's `SamplingParams` ask for; None if its row is left alone."""

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        process_dict_updates(self._rows, batch_update, self._entry)

    def _entry(self, params: Any, prompt: Any, output: Any) -> tuple[State, Any] | None:
        state = self.state_of(params)
        return None if state is None else (state, output)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        self._rows.pop(req_idx, None)
        if (state := self.state_of(sampling_params)) is not None:
            self._rows[req_idx] = (state, None)
        return state is not None

    def placed(self, ctx: Any) -> list[tuple[int, State, int]]:
        """Return (place in the logits, state, tokens generated so far) of each row.

        With asynchronous scheduling, the tokens of steps still running count: the first interface has
        placeholders for them in the output, and the second one includes them in its upper bound.
        """
        if ctx is None:
            return [(at, state, len(output)) for at, (state, output) in self._rows.items()]
        requests: Any = self._requests
        return [
            (
                at,
                self._rows[slot][0],
                int(ctx.seq_lens_upper_bound_np[at]) - int(requests.prompt_len.np[slot]),
            )
            for at, slot in enumerate(ctx.idx_mapping_np.tolist())
            if slot in self._rows
        ]
