"""The scheduler that gives each guided request a twin and keeps both in lockstep.

The rule: of a guided request and its twin, both sample in a step or neither does. The one that is ready first
is held at its last prompt token. Both are admitted one after the other and preempted together, so at most one
guided request is half admitted, and the half that waits is the next to be admitted: nothing else can take the
memory that it waits for. `capacity` makes sure that both fit at their full length.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import RequestStatus

from vllm_flagscale.guidance import seams
from vllm_flagscale.guidance.capacity import Capacity
from vllm_flagscale.guidance.request import NEGATIVE, is_guided, violations
from vllm_flagscale.guidance.twins import Guided, guide, is_single, tokens_left

_log = init_logger("vllm.flagscale.guidance")


class GuidedScheduler(Scheduler):
    """vLLM's scheduler with guidance."""

    running: list[Any]

    def __init__(self, vllm_config: Any, kv_cache_config: Any, *args: Any, **kwargs: Any) -> None:
        seams.check()
        seams.refuse_conflicts(vllm_config, kv_cache_config)
        super().__init__(vllm_config, kv_cache_config, *args, **kwargs)
        self.guided: dict[str, Guided] = {}
        """By the id of the request, and by that of its twin."""
        self.capacity = Capacity(
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_active_reqs,
            # One block is a placeholder that no request gets.
            blocks=self.kv_cache_manager.block_pool.num_gpu_blocks
            - 1
            - self.kv_cache_manager.watermark_blocks,
            block_sizes=tuple(group.kv_cache_spec.block_size for group in kv_cache_config.kv_cache_groups),
        )
        self._open: set[str] = set()
        """The guided requests (names) that sample in this step."""
        self._torn: set[str] = set()
        """The guided requests (names) of which one was preempted in this step."""
        self._admitted: Guided | None = None
        """The guided request that was admitted last, perhaps only half of it."""
        self._last_in_line: Any = None
        """The request at which admission ends in this step."""
        self._failed: list[tuple[int, Any]] = []
        """(client, output) of requests that ended with an error since the last step."""

    # ---- requests come and go

    def add_request(self, request: Any) -> None:
        if not is_guided(request.sampling_params) or request.request_id in self.requests:
            super().add_request(request)
            return
        if wrong := self._wrong(request):
            super().add_request(request)
            self._fail(request, "; ".join(wrong))
            return
        negative = request.sampling_params.extra_args[NEGATIVE]
        guided = guide(request, self.capacity.most_tokens(request.num_prompt_tokens, len(negative)))
        for one in guided.both:
            self.guided[one.request_id] = guided
            super().add_request(one)

    def _wrong(self, request: Any) -> list[str]:
        """Return why a guided request cannot run. The server has refused most of it before."""
        params = request.sampling_params
        wrong = [*violations(params, self.vllm_config.model_config.get_vocab_size())]
        if request.resumable:
            wrong.append("a session with streaming input cannot be guided")
        if request.prompt_embeds is not None:
            wrong.append("a prompt of embeddings cannot be guided: send text or token ids")
        if request.mm_features:
            wrong.append("a prompt with pictures, videos or audio cannot be guided")
        return wrong or [
            *self.capacity.violations(request.num_prompt_tokens, len(params.extra_args[NEGATIVE]))
        ]

    def _fail(self, request: Any, why: str) -> None:
        """End a request with an error; its client gets the reason as `stop_reason` after the next step."""
        _log.error("guided request %s ends: %s", request.request_id, why)
        self.finish_requests(request.request_id, RequestStatus.FINISHED_ERROR)
        output = EngineCoreOutput(
            request_id=request.request_id,
            new_token_ids=[],
            finish_reason=request.get_finished_reason(),
            stop_reason=why,
            events=request.take_events(),
            trace_headers=request.trace_headers,
        )
        self._failed.append((request.client_index, output))

    def finish_requests(self, request_ids: Any, finished_status: Any) -> list[Any]:
        """End requests and their twins; return those that had not ended, without twins."""
        if self.guided and request_ids is not None:
            ids = {request_ids} if isinstance(request_ids, str) else set(request_ids)
            ended = [guided for name in ids if (guided := self.guided.get(name))]
            request_ids = ids.union(one.request_id for guided in ended for one in guided.both)
        done = super().finish_requests(request_ids, finished_status)
        twins = set()
        for one in done:
            if guided := self.guided.pop(one.request_id, None):
                twins.add(guided.twin.request_id)
        return [one for one in done if one.request_id not in twins]

    # ---- a step is planned

    def schedule(self, throttle_prefills: bool = False) -> Any:
        if self.guided:
            self._line_up()
        return super().schedule(throttle_prefills)

    def _line_up(self) -> None:
        """Decide which guided requests sample, and put what samples first: no prefill takes its tokens."""
        self._open.clear()
        self._torn.clear()
        self._last_in_line = None
        self._send_back()
        if half := self._half_admitted():
            self._bring_forward(next(one for one in half.both if one.status != RequestStatus.RUNNING))
            if self._joins(half):
                self._open.add(half.name)
        sampling: list[Any] = []
        others: list[Any] = []
        for request in self.running:
            guided = self.guided.get(request.request_id)
            if guided is None:
                is_ready = tokens_left(request) <= 1
            elif guided.name in self._open:
                is_ready = True
            elif is_ready := guided.can_sample:
                self._open.add(guided.name)
            (sampling if is_ready else others).append(request)
        if others:
            self.running = sampling + others

    def _half_admitted(self) -> Guided | None:
        return self._admitted if self._admitted is not None and self._admitted.is_half_admitted else None

    def _send_back(self) -> None:
        """Put what was brought forward back in line if its partner has lost its place, or did not get one."""
        for request in [*self.kv_holding_waiting]:
            guided = self.guided.get(request.request_id)
            if guided is not None and not guided.is_half_admitted:
                self.kv_holding_waiting.remove_request(request)
                self.waiting.prepend_request(request)

    def _bring_forward(self, request: Any) -> bool:
        """Make a waiting request the next one to be admitted; return False if this step has skipped it."""
        if request not in self.kv_holding_waiting:
            try:
                self.waiting.remove_request(request)
            except ValueError:
                return False
            self.kv_holding_waiting.add_request(request)
        return True

    def _joins(self, half: Guided) -> bool:
        """Return whether the waiting half, a prompt of one token, can be admitted and sample in this step."""
        running, waiting = sorted(half.both, key=lambda one: one.status != RequestStatus.RUNNING)
        if not is_single(waiting) or waiting.num_stale_output_tokens or tokens_left(running) != 1:
            return False
        tokens = 1 + sum(max(0, tokens_left(one)) for one in self.running)
        blocks = self.kv_cache_manager.watermark_blocks
        for size in self.capacity.block_sizes:
            ends = (
                (one.num_computed_tokens, one.num_computed_tokens + tokens_left(one)) for one in self.running
            )
            blocks += 1 + sum(-(-end // size) + -start // size for start, end in ends)
        return (
            self._free_places() >= 1
            and tokens <= self.max_num_scheduled_tokens
            and blocks <= self.kv_cache_manager.block_pool.get_num_free_blocks()
        )

    def _free_places(self) -> int:
        return int(self.max_num_active_reqs - len(self.running) - self.num_waiting_for_streaming_input)

    def _reserve_prefill_lookahead(self, request: Any, num_computed_tokens: int, num_new_tokens: int) -> int:
        """Return how many tokens a request computes in this step.

        0 means: a running request is held, and admission ends with a waiting one.
        """
        num_new_tokens = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        guided = self.guided.get(request.request_id)
        if guided is None or guided.name in self._open:
            return num_new_tokens
        if request is self._last_in_line:
            return 0
        left = request.num_tokens_with_spec + request.num_output_placeholders - num_computed_tokens
        return int(max(min(num_new_tokens, left - 1), 0))

    def _get_local_prefix_cache_hit(self, request: Any) -> Any:
        """Leave a guided request two tokens to compute: one to be admitted with, one to sample with."""
        blocks, hit, boundary, diverged = super()._get_local_prefix_cache_hit(request)
        if hit and hit >= request.num_tokens - 1 and request.request_id in self.guided:
            groups, hit, _ = self.kv_cache_manager.coordinator.find_longest_cache_hit(
                request.block_hashes, request.num_tokens - 2
            )
            blocks = self.kv_cache_manager.create_kv_cache_blocks(groups)
        return blocks, hit, boundary, diverged

    def _handle_blocked_waiting_request(self, request: Any) -> bool:
        """Return whether a waiting request may be admitted; False passes it over in this step."""
        if not super()._handle_blocked_waiting_request(request):
            return False
        if not self.guided:
            return True
        guided = self.guided.get(request.request_id)
        return self._has_lora_place(request) and (guided is None or self._may_enter(request, guided))

    def _has_lora_place(self, request: Any) -> bool:
        """Return whether the adapter of a request fits beside those of all that run.

        The engine counts only those that compute in this step, and a held request comes back in a later one.
        """
        if not self.lora_config or not request.lora_request:
            return True
        running = {one.lora_request.lora_int_id for one in self.running if one.lora_request}
        return request.lora_request.lora_int_id in running or len(running) < self.lora_config.max_loras

    def _may_enter(self, request: Any, guided: Guided) -> bool:
        partner = guided.partner(request)
        if request.num_stale_output_tokens or partner.num_stale_output_tokens:
            return False  # the step that was in flight when they were preempted is still to be dropped
        if partner.status == RequestStatus.RUNNING:
            return not is_single(request) or guided.name in self._open
        if partner.status not in (RequestStatus.WAITING, RequestStatus.PREEMPTED):
            return False  # its grammar is being compiled
        if is_single(request) and not is_single(partner):
            return False  # it samples as soon as it is admitted, so the other one goes first
        if self._half_admitted() or self._free_places() < 2:
            # Were it passed over, ordinary requests would take each place that becomes free, forever.
            self._last_in_line = request
            return True
        if is_single(request):
            if not self._bring_forward(partner):
                return False
            self._open.add(guided.name)
        self._admitted = guided
        return True

    def _preempt_request(self, request: Any, timestamp: float, drop_stale_output: bool = False) -> None:
        """Preempt a request; of a guided one, drop the token in flight: both halves will draw it again."""
        guided = self.guided.get(request.request_id)
        super()._preempt_request(request, timestamp, drop_stale_output or guided is not None)
        if guided is not None:
            self._open.discard(guided.name)
            self._torn.add(guided.name)

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        """Preempt the rest of each guided request of which one half was preempted, or samples alone."""
        super()._update_after_schedule(scheduler_output)
        if not self.guided:
            return
        alone: set[str] = set()
        for name in scheduler_output.num_scheduled_tokens:
            guided = self.guided.get(name)
            if guided is not None and not self.requests[name].is_prefill_chunk:
                alone ^= {guided.name}
        if not (leaving := self._torn | alone):
            return
        # In reverse order, so that they wait in the order in which they ran.
        for request in reversed(self.running[:]):
            guided = self.guided.get(request.request_id)
            if guided is not None and guided.name in leaving:
                self.running.remove(request)
                self.prev_step_scheduled_req_ids.discard(request.request_id)
                self._preempt_request(request, time.monotonic())

    # ---- a step has run

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, Any]:
        ran = {}
        if self.guided:
            found = map(self.guided.get, scheduler_output.num_scheduled_tokens)
            ran = {guided.name: guided for guided in found if guided is not None}
        outputs: dict[int, Any] = super().update_from_output(scheduler_output, model_runner_output)
        for guided in ran.values():
            self._settle(guided)
        if ran:
            twins = {guided.twin.request_id for guided in ran.values()}
            for one in outputs.values():
                one.outputs = [output for output in one.outputs if output.request_id not in twins]
        for client, output in self._failed:
            outputs.setdefault(client, EngineCoreOutputs()).outputs.append(output)
        self._failed.clear()
        return outputs

    def _settle(self, guided: Guided) -> None:
        """End the twin of a request that has ended."""
        if guided.request.is_finished():
            super().finish_requests(guided.twin.request_id, RequestStatus.FINISHED_ABORTED)
            for one in guided.both:
                self.guided.pop(one.request_id, None)
        elif guided.differs:
            self._fail(guided.request, "its two rows have drawn different tokens, which is a bug of guidance")

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """Return vLLM's statistics, in which a guided request counts once."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None and self.guided:
            running, skipped = (
                sum(
                    one.request_id in self.guided and one is self.guided[one.request_id].twin for one in group
                )
                for group in (self.running, self.deferred_waiting)
            )
            stats.num_running_reqs -= running
            stats.num_skipped_waiting_reqs -= skipped
            stats.num_waiting_reqs -= len(self.guided) // 2 - running - skipped
        return stats


class GuidedAsyncScheduler(GuidedScheduler, AsyncScheduler):
    """vLLM's scheduler that plans a step while the last one runs, with guidance."""
