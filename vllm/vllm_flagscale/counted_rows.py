"""A logits processor for both of vLLM's interfaces that knows how many tokens each of its rows has generated.

Model runner V1 calls `update_state` and `apply(logits)`, and names a request by its place in the batch. V2
calls `add_request` and `apply(logits, ctx)`, and names it by a slot, which it keeps.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from vllm.v1.sample.logits_processor import LogitsProcessor as FirstInterface
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SecondInterface


class CountedRows[State](FirstInterface, SecondInterface):
    """Keeps a state per row, for the rows that the processor changes."""

    def __init__(self, vllm_config: Any, where: Any, *rest: Any) -> None:
        # V1 gives a device, V2 the states of its requests.
        self._requests: Any = None if isinstance(where, torch.device) else where
        self._rows: dict[int, tuple[State, Any]] = {}
        """By place (V1) or slot (V2); with the generated tokens (V1)."""
        self._slots: Any = None
        """The slot at each place of the batch that `have_moved` saw last (V2)."""
        self._have_changed = True

    @staticmethod
    @abstractmethod
    def state_of(params: Any) -> State | None:
        """Return what a request's `SamplingParams` ask for; None if its row is left alone."""

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        if process_dict_updates(self._rows, batch_update, self._entry):
            self._have_changed = True

    def _entry(self, params: Any, prompt: Any, output: Any) -> tuple[State, Any] | None:
        state = self.state_of(params)
        return None if state is None else (state, output)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        held, state = self._rows.pop(req_idx, None), self.state_of(sampling_params)
        if state is not None:
            self._rows[req_idx] = (state, None)
        if held is not None or state is not None:
            self._have_changed = True
        return state is not None

    def have_moved(self, ctx: Any) -> bool:
        """Return whether `placed` gives other rows or places than at the last call of this method."""
        if ctx is not None and not np.array_equal(self._slots, ctx.idx_mapping_np):
            self._slots, self._have_changed = ctx.idx_mapping_np.copy(), True
        have_changed, self._have_changed = self._have_changed, False
        return have_changed

    def placed(self, ctx: Any) -> Iterator[tuple[int, State]]:
        """Yield (place in the logits, state) of each row."""
        if ctx is None:
            yield from ((place, state) for place, (state, _) in self._rows.items())
        else:
            slots = enumerate(ctx.idx_mapping_np.tolist())
            yield from ((place, self._rows[slot][0]) for place, slot in slots if slot in self._rows)

    def length_at(self, ctx: Any, place: int) -> int:
        """Return how many tokens the row at a place has generated.

        With asynchronous scheduling, the tokens of steps still running count: V1 has placeholders for them in
        the output, and V2 includes them in its upper bound, which is exact without speculative decoding.
        """
        if ctx is None:
            return len(self._rows[place][1])
        slot = int(ctx.idx_mapping_np[place])
        return int(ctx.seq_lens_upper_bound_np[place]) - int(self._requests.prompt_len.np[slot])
