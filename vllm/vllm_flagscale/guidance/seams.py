"""What guidance takes for granted of vLLM's scheduler, and the settings of an engine that it cannot serve.

The scheduler is no public interface of vLLM, so every method that guidance overrides or calls is compared by
name and signature, and every attribute by name, before the engine starts to guide.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.errors import Problem, UserError

SUPPORTED = ((0, 32), (0, 33))
"""vLLM's versions: from the first (inclusive) to the second (exclusive)."""

SIGNATURES = {
    "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator.find_longest_cache_hit": (
        "self, block_hashes, max_cache_hit_length"
    ),
    "vllm.v1.core.kv_cache_manager:KVCacheManager.create_kv_cache_blocks": "self, blocks",
    "vllm.v1.core.kv_cache_manager:KVCacheManager.get_computed_blocks": "self, request",
    "vllm.v1.core.sched.async_scheduler:AsyncScheduler._update_after_schedule": "self, scheduler_output",
    "vllm.v1.core.sched.request_queue:RequestQueue.add_request": "self, request",
    "vllm.v1.core.sched.request_queue:RequestQueue.prepend_request": "self, request",
    "vllm.v1.core.sched.request_queue:RequestQueue.remove_request": "self, request",
    "vllm.v1.core.sched.scheduler:Scheduler.__init__": (
        "self, vllm_config, kv_cache_config, structured_output_manager, block_size, hash_block_size=, "
        "mm_registry=, include_finished_set=, log_stats="
    ),
    "vllm.v1.core.sched.scheduler:Scheduler._get_local_prefix_cache_hit": "self, request",
    "vllm.v1.core.sched.scheduler:Scheduler._handle_blocked_waiting_request": "self, request",
    "vllm.v1.core.sched.scheduler:Scheduler._preempt_request": "self, request, timestamp, drop_stale_output=",
    "vllm.v1.core.sched.scheduler:Scheduler._reserve_prefill_lookahead": (
        "self, request, num_computed_tokens, num_new_tokens"
    ),
    "vllm.v1.core.sched.scheduler:Scheduler._update_after_schedule": "self, scheduler_output",
    "vllm.v1.core.sched.scheduler:Scheduler.add_request": "self, request",
    "vllm.v1.core.sched.scheduler:Scheduler.finish_requests": "self, request_ids, finished_status",
    "vllm.v1.core.sched.scheduler:Scheduler.make_stats": (
        "self, spec_decoding_stats=, kv_connector_stats=, cudagraph_stats=, perf_stats=, ec_connector_stats="
    ),
    "vllm.v1.core.sched.scheduler:Scheduler.schedule": "self, throttle_prefills=",
    "vllm.v1.core.sched.scheduler:Scheduler.update_from_output": (
        "self, scheduler_output, model_runner_output"
    ),
    "vllm.v1.request:Request.__init__": (
        "self, request_id, prompt_token_ids, sampling_params, pooling_params, client_index=, arrival_time=, "
        "prompt_embeds=, prompt_is_token_ids=, mm_features=, lora_request=, cache_salt=, priority=, "
        "trace_headers=, block_hasher=, resumable=, session_id=, reasoning_ended=, reasoning_parser_kwargs=, "
        "abort_immediately=, kv_hints="
    ),
}
"""Parameters in their order; `=` marks those that have a default."""

ATTRIBUTES = {
    "vllm.v1.core.kv_cache_manager:KVCacheManager": ("block_pool", "coordinator", "watermark_blocks"),
    "vllm.v1.core.sched.scheduler:Scheduler": (
        "deferred_waiting",
        "kv_cache_manager",
        "kv_holding_waiting",
        "lora_config",
        "max_model_len",
        "max_num_active_reqs",
        "max_num_scheduled_tokens",
        "num_waiting_for_streaming_input",
        "prev_step_scheduled_req_ids",
        "requests",
        "running",
        "vllm_config",
        "waiting",
    ),
    "vllm.v1.request:Request": (
        "_block_hasher",
        "arrival_time",
        "block_hashes",
        "client_index",
        "is_prefill_chunk",
        "max_tokens",
        "mm_features",
        "num_computed_tokens",
        "num_output_placeholders",
        "num_prompt_tokens",
        "num_stale_output_tokens",
        "output_token_ids",
        "prefill_stats",
        "prompt_embeds",
        "resumable",
        "status",
        "trace_headers",
    ),
}
"""What the constructors of these classes assign."""

FIELDS = {
    "vllm.v1.core.sched.output:SchedulerOutput": ("num_scheduled_tokens",),
    "vllm.v1.engine:EngineCoreOutput": (
        "request_id",
        "new_token_ids",
        "finish_reason",
        "stop_reason",
        "events",
        "trace_headers",
    ),
    "vllm.v1.metrics.stats:SchedulerStats": (
        "num_running_reqs",
        "num_waiting_reqs",
        "num_skipped_waiting_reqs",
    ),
}


def check() -> None:
    """Raise a UserError that lists all differences if this vLLM is not one that guidance is written for."""
    import vllm

    first, last = (".".join(map(str, version)) for version in SUPPORTED)
    what = [*differences(SIGNATURES, ATTRIBUTES, FIELDS)]
    if not SUPPORTED[0] <= _release(vllm.__version__) < SUPPORTED[1]:
        what.insert(0, f"guidance needs vLLM >={first},<{last}; this is {vllm.__version__}")
    if what:
        hint = f"install vLLM >={first},<{last}, or remove `guidance`: ordinary requests need none of this"
        raise UserError([Problem("this vLLM cannot guide:\n    " + "\n    ".join(what), hint=hint)])


def differences(
    signatures: Mapping[str, str],
    attributes: Mapping[str, tuple[str, ...]],
    fields: Mapping[str, tuple[str, ...]],
) -> Iterator[str]:
    """Yield how the installed vLLM differs from what was recorded."""
    for path, expected in signatures.items():
        found = _find(path)
        if found is None:
            yield f"`{path}` is missing"
        elif (actual := signature(found)) != expected:
            yield f"`{path}` takes ({actual}), not ({expected})"
    for path, names in attributes.items():
        found = _find(path)
        # A constructor assigns its attributes, so their names are in its code.
        known = found.__init__.__code__.co_names if found is not None else ()
        yield from (f"`{path}` has no `{name}`" for name in names if name not in known)
    for path, names in fields.items():
        found = _find(path)
        known = tuple(inspect.get_annotations(found)) if found is not None else ()
        yield from (f"`{path}` has no `{name}`" for name in names if name not in known)


def signature(function: Any) -> str:
    """Return the parameters of a function as `SIGNATURES` records them."""
    parameters = inspect.signature(function).parameters.values()
    return ", ".join(one.name + ("" if one.default is one.empty else "=") for one in parameters)


def _find(path: str) -> Any:
    """Return the object at `module:Class.name`, None if there is none."""
    import importlib

    module, _, names = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError:
        return None
    for name in names.split("."):
        found = inspect.getattr_static(found, name, None)
    return found


def _release(version: str) -> tuple[int, ...]:
    """Return major and minor version: (0, 32) for 0.32.1+cpu."""
    from packaging.version import Version

    return Version(version).release[:2]


def refuse_conflicts(vllm_config: Any, kv_cache_config: Any = None) -> None:
    """Raise a UserError that names all settings of an engine that cannot be combined with guidance."""
    if problems := [
        Problem(f"`guidance` cannot be combined with {what}", hint=fix)
        for what, fix in conflicts(vllm_config, kv_cache_config)
    ]:
        raise UserError(problems)


def conflicts(vllm_config: Any, kv_cache_config: Any = None) -> Iterator[tuple[str, str]]:
    """Yield (setting, how to fix it) for what an engine cannot do together with guidance.

    The processor asks before the weights are loaded, without a KV cache, and the scheduler afterwards.
    """
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    if vllm_config.speculative_config is not None:
        yield "speculative decoding", "remove `speculative_config`"
    if vllm_config.kv_transfer_config is not None:
        yield "a KV connector", "remove `kv_transfer_config`"
    if vllm_config.ec_transfer_config is not None:
        yield "an encoder connector", "remove `ec_transfer_config`"
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        yield (
            "context parallelism",
            "set `decode_context_parallel_size` and `prefill_context_parallel_size` to 1",
        )
    if parallel.enable_batch_sharded_sampling:
        yield "sampling that is sharded over ranks", "remove `enable_batch_sharded_sampling`"
    if vllm_config.watermark_config is not None:
        yield "watermarks, because it draws the tokens itself", "remove `watermark_config`"
    if (mode := model.logprobs_mode).startswith("processed"):
        yield (
            f"`logprobs_mode: {mode}`, which would show one certain token",
            f"use {mode.replace('processed', 'raw')}",
        )
    if model.is_encoder_decoder:
        yield "a model with encoder and decoder", "serve it without `guidance`"
    if model.is_diffusion:
        yield "a diffusion model", "serve it without `guidance`"
    if model.runner_type != "generate":
        yield f"a model that runs as `{model.runner_type}`", "serve it without `guidance`"
    if kv_cache_config is not None and kv_cache_config.has_mamba_layers:
        yield "a model with recurrent (Mamba) layers", "serve it without `guidance`"
