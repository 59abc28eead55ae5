"""The scheduler that gives each guided request a twin and keeps both in lockstep."""

from __future__ import annotations

import secrets
import time
from copy import copy
from dataclasses import dataclass
from typing import Any

from vllm.logger import init_logger
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from vllm_flagscale.guidance.request import NEGATIVE, ROW, SCALE, Row, is_guided, violations

_log = init_logger("vllm.flagscale.guidance")
_RUNNING = RequestStatus.RUNNING
_SUFFIX = "!twin"


@dataclass(frozen=True)
class Guided:
    """A guided request and its twin."""

    request: Any
    twin: Any

    @property
    def both(self) -> tuple[Any, Any]:
        return self.request, self.twin

    def partner(self, request: Any) -> Any:
        return self.twin if request is self.request else self.request


class _Guiding:
    """What both schedulers of vLLM need."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.guided: dict[str, Guided] = {}
        """By the id of the request, and by that of its twin."""
        self.open: set[str] = set()
        """The guided requests (ids) that sample in this step."""
        self.refused: set[str] = set()

    # ---- requests come and go
    def add_request(self, request: Any) -> None:
        params = request.sampling_params
        if not is_guided(params) or request.request_id in self.requests:
            return super().add_request(request)
        negative = params.extra_args[NEGATIVE]
        room = self.max_model_len - max(request.num_prompt_tokens, len(negative))
        if [*violations(params, self.vllm_config.model_config.get_vocab_size())] or not self._fits(
            request, negative, room
        ):
            super().add_request(request)
            self.grammar_compile_error_reqs.add(request.request_id)  # an error after the next step
            self.refused.add(request.request_id)
            return None
        request.max_tokens = min(request.max_tokens, room)
        seed = params.seed if params.seed is not None else secrets.randbits(62)
        sampling = {name: getattr(params, name) for name in ("temperature", "top_k", "top_p", "min_p")}
        row = Row(request.request_id, False, float(params.extra_args[SCALE]), seed, **sampling)
        request.sampling_params = _drawn_elsewhere(params, row)
        twin = self._twin(request, negative, row)
        guided = Guided(request, twin)
        self.guided[request.request_id] = self.guided[twin.request_id] = guided
        super().add_request(request)
        super().add_request(twin)
        return None

    def _fits(self, request: Any, negative: list[int], room: int) -> bool:
        """Return whether both rows can run to their end at the same time."""
        if room < 1 or self.max_num_active_reqs < 2:
            return False
        lengths = (request.num_prompt_tokens, len(negative))
        blocks = sum(-(-(n + min(request.max_tokens, room)) // self.block_size) for n in lengths)
        return blocks <= self.kv_cache_manager.block_pool.num_gpu_blocks - 1

    def _twin(self, request: Any, negative: list[int], row: Row) -> Any:
        of_twin = Row(row.request_id, True, row.scale, row.seed)
        twin = Request(
            request_id=f"{request.request_id}{_SUFFIX}",
            prompt_token_ids=list(negative),
            sampling_params=SamplingParams(
                temperature=0.0,
                max_tokens=request.max_tokens,
                ignore_eos=True,
                detokenize=False,
                logit_bias=request.sampling_params.logit_bias,
                extra_args={**request.sampling_params.extra_args, ROW: of_twin},
            ),
            pooling_params=None,
            client_index=request.client_index,
            arrival_time=request.arrival_time,
            lora_request=request.lora_request,
            cache_salt=request.cache_salt,
            priority=request.priority,
            block_hasher=request._block_hasher,
        )
        twin.prefill_stats = None
        return twin

    def finish_requests(self, request_ids: Any, finished_status: Any) -> Any:
        if request_ids is not None:
            ids = {request_ids} if isinstance(request_ids, str) else set(request_ids)
            request_ids = ids | {one.request_id for i in ids if i in self.guided for one in self.guided[i].both}
        done = super().finish_requests(request_ids, finished_status)
        for one in done:
            self._forget(one.request_id)
        return [one for one in done if not one.request_id.endswith(_SUFFIX)]

    def _forget(self, request_id: str) -> None:
        if guided := self.guided.get(request_id):
            for one in guided.both:
                self.guided.pop(one.request_id, None)

    # ---- lockstep
    @staticmethod
    def _left(request: Any) -> int:
        return int(request.num_tokens_with_spec + request.num_output_placeholders - request.num_computed_tokens)

    def _joins(self, request: Any) -> bool:
        """Return whether a request samples in the step that admits it: its prompt has one token."""
        return request.status == RequestStatus.WAITING and request.num_tokens == 1

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        if self.guided:
            self._open_or_hold()
        return super().schedule(*args, **kwargs)

    def _open_or_hold(self) -> None:
        self.open.clear()
        first: list[Any] = []
        rest: list[Any] = []
        seen: set[str] = set()
        for request in self.running:
            guided = self.guided.get(request.request_id)
            if guided is None:
                (first if self._left(request) <= 1 else rest).append(request)
                continue
            name = guided.request.request_id
            if name in seen:
                continue
            seen.add(name)
            running = [one for one in guided.both if one.status == _RUNNING]
            is_ready = len(running) == 2 and all(self._left(one) == 1 for one in guided.both)
            is_joined = (
                len(running) == 1
                and self._left(running[0]) == 1
                and self._joins(guided.partner(running[0]))
                and len(self.running) < self.max_num_active_reqs
                and self.kv_cache_manager.block_pool.get_num_free_blocks() > len(self.running) + 1
            )
            if is_ready or is_joined:
                self.open.add(name)
                first += running
                continue
            for one in running:
                if self._left(one) <= 1:
                    one.next_decode_eligible_step = self.current_step + 2
            rest += running
        for name, guided in self.guided.items():  # both prompts have one token, and neither runs
            if name not in seen and all(self._joins(one) for one in guided.both):
                self.open.add(guided.request.request_id)
        self.running = first + rest

    def _reserve_prefill_lookahead(self, request: Any, num_computed_tokens: int, num_new_tokens: int) -> int:
        num_new_tokens = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        guided = self.guided.get(request.request_id)
        if guided is None or guided.request.request_id in self.open:
            return num_new_tokens
        left = request.num_tokens_with_spec + request.num_output_placeholders - num_computed_tokens
        return max(min(num_new_tokens, left - 1), 0)

    def _get_local_prefix_cache_hit(self, request: Any) -> Any:
        blocks, hit, boundary, diverged = super()._get_local_prefix_cache_hit(request)
        if request.request_id in self.guided and hit and hit >= request.num_tokens - 1:
            hit -= self.block_size
            blocks = self.kv_cache_manager.truncate_computed_blocks(blocks, hit)
        return blocks, hit, boundary, diverged

    def _handle_blocked_waiting_request(self, request: Any) -> bool:
        if request.request_id in self.refused or not super()._handle_blocked_waiting_request(request):
            return False
        guided = self.guided.get(request.request_id)
        if guided is None:
            return True
        if self._joins(request) and guided.request.request_id not in self.open:
            return False
        if guided.partner(request).status != _RUNNING:
            if len(self.running) + 2 > self.max_num_active_reqs:
                return False
            return not any(
                sum(one.status == _RUNNING for one in other.both) == 1 for other in self.guided.values()
            )
        return True

    def _preempt_request(self, request: Any, timestamp: float, drop_stale_output: bool = False) -> None:
        super()._preempt_request(request, timestamp, drop_stale_output)
        if guided := self.guided.get(request.request_id):
            guided.partner(request).next_decode_eligible_step = self.current_step + 1  # not in this step

    def _update_after_schedule(self, output: Any) -> None:
        for guided in {id(one): one for one in self.guided.values()}.values():
            sampling = [
                one
                for one in guided.both
                if (count := output.num_scheduled_tokens.get(one.request_id)) and self._left(one) <= count
            ]
            if len(sampling) == 1:
                self._withdraw(output, sampling[0])
        super()._update_after_schedule(output)

    def _withdraw(self, output: Any, request: Any) -> None:
        """Take a request out of a step that its partner is not in; it comes back later."""
        name = request.request_id
        output.total_num_scheduled_tokens -= output.num_scheduled_tokens.pop(name)
        output.scheduled_spec_decode_tokens.pop(name, None)
        output.scheduled_encoder_inputs.pop(name, None)
        is_new = any(one.req_id == name for one in output.scheduled_new_reqs)
        output.scheduled_new_reqs = [one for one in output.scheduled_new_reqs if one.req_id != name]
        cached = output.scheduled_cached_reqs
        if name in cached.req_ids:
            at = cached.req_ids.index(name)
            columns = ("req_ids", "new_token_ids", "new_block_ids", "num_computed_tokens", "num_output_tokens")
            for column in columns:
                if getattr(cached, column):
                    del getattr(cached, column)[at]
            cached.resumed_req_ids.discard(name)
            cached.all_token_ids.pop(name, None)
        self.prev_step_scheduled_req_ids.discard(name)
        self.running.remove(request)
        self._preempt_request(request, time.monotonic())
        if is_new and not self.use_v2_model_runner:  # the workers have not heard of it
            request.status = RequestStatus.WAITING
            self.reset_preempted_req_ids.discard(name)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if not self.guided:
            return outputs
        for guided in {id(one): one for one in self.guided.values()}.values():
            request, twin = guided.both
            if request.is_finished() or twin.is_finished():
                if not twin.is_finished():
                    super().finish_requests(twin.request_id, RequestStatus.FINISHED_ABORTED)
                elif not request.is_finished():
                    _log.error("the twin of %s ended alone", request.request_id)
                self._forget(request.request_id)
        for one in outputs.values():
            if one.outputs:
                one.outputs = [o for o in one.outputs if not o.request_id.endswith(_SUFFIX)]
        return outputs


def _drawn_elsewhere(params: Any, row: Row) -> Any:
    """Return the parameters for the worker, which only has to take the token that the processor forces."""
    worker = copy(params)
    worker.__dict__.pop("sampling_type", None)  # derived from the temperature
    worker.seed, worker.temperature, worker.top_k, worker.top_p, worker.min_p = None, 0.0, 0, 1.0, 0.0
    worker.extra_args = {**{k: v for k, v in params.extra_args.items() if k != NEGATIVE}, ROW: row}
    return worker


class GuidedScheduler(_Guiding, Scheduler):
    """vLLM's scheduler with guidance."""


class GuidedAsyncScheduler(_Guiding, AsyncScheduler):
    """vLLM's scheduler that plans a step while the last one runs, with guidance."""
