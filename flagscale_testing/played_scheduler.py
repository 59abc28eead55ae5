"""vLLM's scheduler with guidance, and a played worker: no model, so thousands of steps take seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

WRONG = 1
"""The token that a row draws if the other row of its request does not draw with it."""


class PlayedScheduler:
    """A scheduler and its played worker. Of request `name`, token number n is `token(name, n)`."""

    def __init__(self, folder: Path, blocks: int = 64, block_size: int = 16, **settings: Any) -> None:
        """`folder` holds a `config.json`; `settings` are arguments of vLLM's engine."""
        import torch
        from vllm import EngineArgs
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        from vllm_flagscale.guidance.scheduler import GuidedAsyncScheduler, GuidedScheduler

        given = {"max_model_len": 128, "skip_tokenizer_init": True, "enable_prefix_caching": False}
        config = EngineArgs(model=str(folder), **{**given, **settings}).create_engine_config()
        config.cache_config.num_gpu_blocks = blocks
        spec = FullAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)
        cache = KVCacheConfig(blocks, [], [KVCacheGroupSpec(["layer"], spec)])
        self.is_async = settings.get("async_scheduling", True)
        made = GuidedAsyncScheduler if self.is_async else GuidedScheduler
        self.scheduler: Any = made(config, cache, StructuredOutputManager(config), block_size, log_stats=True)
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(block_size, sha256)
        self._in_flight: deque[tuple[Any, dict[str, list[int]]]] = deque()
        self.drawn: dict[str, int] = {}
        """Tokens of each row (id) in the worker, also of steps that are in flight."""
        self.computed: dict[str, int] = {}
        self.answers: dict[str, list[int]] = {}
        self.ended: dict[str, Any] = {}
        """The last output of each request that ended."""
        self.alone = 0
        """How often a row sampled without its partner; its output has to be dropped."""
        self.stats: Any = None

    def add(
        self,
        name: str,
        prompt: Sequence[int],
        negative: Sequence[int] | None = None,
        scale: float = 3.0,
        priority: int = 0,
        adapter: int = 0,
        pictures: Sequence[Any] | None = None,
        **sampling: Any,
    ) -> None:
        """Send a request, guided if there is a negative prompt, with a LoRA adapter if it is not 0.

        `pictures` are vLLM's `MultiModalFeatureSpec`.
        """
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.v1.request import Request

        from vllm_flagscale.guidance.request import extra_args

        if negative is not None:
            sampling["extra_args"] = extra_args(scale, negative)
        params = SamplingParams(**{"temperature": 0.0, "ignore_eos": True, "max_tokens": 8, **sampling})
        request = Request(
            name,
            [*prompt],
            params,
            None,
            priority=priority,
            arrival_time=float(len(self.answers)),
            mm_features=[*pictures] if pictures else None,
            lora_request=LoRARequest(f"adapter-{adapter}", adapter, "/none") if adapter else None,
            block_hasher=self._hasher,
        )
        self.answers[name] = []
        self.scheduler.add_request(request)

    def is_right(self, name: str) -> bool:
        """Return whether a request has the tokens that belong to it, as many as it has."""
        return self.answers[name] == [token(name, at) for at in range(len(self.answers[name]))]

    def remains(self) -> list[str]:
        """Return what is left in the scheduler after all requests have ended."""
        return left_over(self.scheduler)

    def abort(self, name: str) -> None:
        from vllm.v1.request import RequestStatus

        self.scheduler.finish_requests([name], RequestStatus.FINISHED_ABORTED)

    def step(self) -> int:
        """Plan a step, and end the one before it (async) or itself; return how many tokens it computes."""
        plan = self.scheduler.schedule()
        self._in_flight.append((plan, self._draw(plan)))
        while len(self._in_flight) > (1 if self.is_async and plan.num_scheduled_tokens else 0):
            self._end_step()
        return int(plan.total_num_scheduled_tokens)

    def run(self, steps: int = 2000, each: Callable[[], None] = lambda: None) -> int:
        """Step until nothing is left to do; return the number of steps. Raises AssertionError if it hangs."""
        for done in range(steps):
            if not self.scheduler.has_requests() and not self._in_flight:
                return done
            each()
            self.step()
        waiting = [one.request_id for one in self.scheduler.requests.values()]
        raise AssertionError(f"after {steps} steps, these requests have not ended: {waiting}")

    def _draw(self, plan: Any) -> dict[str, list[int]]:
        """Return the tokens per row that a worker would draw for a plan."""
        for one in plan.scheduled_new_reqs:
            self.computed[one.req_id], self.drawn[one.req_id] = one.num_computed_tokens, 0
        cached = plan.scheduled_cached_reqs
        for at, name in enumerate(cached.req_ids):
            assert name in self.computed, f"the worker has not heard of {name}"
            self.computed[name], self.drawn[name] = (
                cached.num_computed_tokens[at],
                cached.num_output_tokens[at],
            )
        sampling = []
        for name, count in plan.num_scheduled_tokens.items():
            request = self.scheduler.requests[name]
            if self.computed[name] + count >= request.num_prompt_tokens + self.drawn[name]:
                sampling.append(name)
        together: dict[str, list[int]] = {name: [] for name in plan.num_scheduled_tokens}
        for name in sampling:
            other = name.removesuffix("!twin") if name.endswith("!twin") else f"{name}!twin"
            is_alone = self._is_guided(name) and other not in sampling
            self.alone += is_alone
            together[name] = [WRONG if is_alone else token(name, self.drawn[name])]
        return together

    def _is_guided(self, name: str) -> bool:
        from vllm_flagscale.guidance.request import ROW

        return ROW in (self.scheduler.requests[name].sampling_params.extra_args or {})

    def _end_step(self) -> None:
        from vllm.v1.outputs import ModelRunnerOutput

        plan, tokens = self._in_flight.popleft()
        names = [*tokens]
        places = {name: at for at, name in enumerate(names)}
        output = ModelRunnerOutput(names, places, [[*tokens[one]] for one in names])
        for one in self.scheduler.update_from_output(plan, output).values():
            self.stats = one.scheduler_stats or self.stats
            for answer in one.outputs:
                self.answers[answer.request_id] += answer.new_token_ids
                if answer.finish_reason is not None:
                    self.ended[answer.request_id] = answer


def left_over(scheduler: Any) -> list[str]:
    """Return what is left in a guided scheduler after all requests have ended: queues, requests, blocks."""
    names = ("guided", "requests", "running", "waiting", "kv_holding_waiting", "deferred_waiting", "_failed")
    found = [f"{name}: {len(left)}" for name in names if len(left := getattr(scheduler, name))]
    pool = scheduler.kv_cache_manager.block_pool
    if used := pool.num_gpu_blocks - 1 - pool.get_num_free_blocks():
        found.append(f"blocks: {used}")
    return found


def token(name: str, number: int) -> int:
    """Return the token that a request, or its twin, draws at a place of its answer."""
    return 2 + (sum(name.removesuffix("!twin").encode()) * 31 + number * 7) % 500
