"""Values of several arguments that vLLM refuses together (0.32, `config/` and `launchers/cli_args.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.checks.model_folder import mapping_of
from flagscale.errors import Violation


def engine_violations(
    values: Mapping[str, Any], given: Mapping[str, str], longest: int | None = None
) -> Iterator[Violation]:
    """Yield the arguments that contradict each other, by dest.

    `given` holds those that the user wrote; `longest` is the length of a sequence that the model's
    configuration sets, if known.
    """

    def number(name: str) -> int | None:
        return values[name] if name in given and isinstance(values[name], int) else None

    tokens, length = number("max_num_batched_tokens"), number("max_model_len")
    length = longest if length in (None, -1) else length
    sequences, active = number("max_num_seqs"), number("max_num_active_seqs")
    is_whole = values["enable_chunked_prefill"] is False
    if is_whole and tokens is not None and length is not None and tokens < length:
        what = f"`max_num_batched_tokens` is {tokens}, less than `max_model_len` {length}"
        yield "max_num_batched_tokens", f"{what}; without chunked prefill, a prompt must fit into one step"
    if tokens is not None and sequences is not None and tokens < sequences:
        what = f"`max_num_batched_tokens` is {tokens}, less than `max_num_seqs` {sequences}"
        yield "max_num_batched_tokens", f"{what}; each sequence needs at least one token per step"
    if active is not None and sequences is not None and active > sequences:
        yield (
            "max_num_active_seqs",
            f"`max_num_active_seqs` is {active}, more than `max_num_seqs` {sequences}",
        )
    long = number("long_prefill_token_threshold")
    if long is not None and length is not None and long > length:
        what = f"`long_prefill_token_threshold` is {long}, more than `max_model_len` {length}"
        yield "long_prefill_token_threshold", what
    tensor, context = values["tensor_parallel_size"], values["decode_context_parallel_size"]
    if tensor % context:
        what = f"`decode_context_parallel_size` {context} does not divide `tensor_parallel_size` {tensor}"
        yield "decode_context_parallel_size", what
    cached, loaded = values["max_cpu_loras"], values["max_loras"]
    if values["enable_lora"] and cached is not None and cached < loaded:
        yield "max_cpu_loras", f"`max_cpu_loras` is {cached}, less than `max_loras` {loaded}"
    for name, (config, key) in _ELSEWHERE.items():
        if name in given and mapping_of(values[config]).get(key) is not None:
            yield name, f"`{name}` and `{key}` in `{config}` set the same value: keep one of them"
    yield from _missing(values, given)
    yield from _speculative_violations(values, given)


def _missing(values: Mapping[str, Any], given: Mapping[str, str]) -> Iterator[Violation]:
    """Yield the settings that need another one; an engine without a server lacks some of the arguments."""
    if values.get("enable_auto_tool_choice") and "tool_call_parser" not in given:
        yield "enable_auto_tool_choice", "`enable_auto_tool_choice` needs `tool_call_parser`"
    if values.get("enable_log_outputs") and not values["enable_log_requests"]:
        yield "enable_log_outputs", "`enable_log_outputs` needs `enable_log_requests: true`"
    if values.get("enable_per_request_metrics") and values["disable_log_stats"]:
        what = "`enable_per_request_metrics` needs statistics, and `disable_log_stats` turns them off"
        yield "enable_per_request_metrics", what
    structured = mapping_of(values["structured_outputs_config"])
    for key, backends in _BACKENDS.items():
        if structured.get(key) is True and structured.get("backend", "auto") not in backends:
            what = f"`{key}` in `structured_outputs_config` needs `backend` {' or '.join(backends)}"
            yield "structured_outputs_config", what


def _speculative_violations(values: Mapping[str, Any], given: Mapping[str, str]) -> Iterator[Violation]:
    speculative = mapping_of(values[_SPECULATIVE])
    keys = {key for key, value in speculative.items() if value is not None}
    keys |= {key for name, (config, key) in _ELSEWHERE.items() if config == _SPECULATIVE and name in given}
    blamed = next((name for name in (_SPECULATIVE, "spec_method") if name in given), "spec_tokens")
    if "num_speculative_tokens" in keys and not {"method", "model"} & keys:
        yield blamed, "speculative decoding needs a `method` or a `model`"
    method = speculative.get("method", values["spec_method"])
    if method in ("ngram", "ngram_gpu") and "num_speculative_tokens" not in keys:
        yield blamed, f"the method `{method}` needs `num_speculative_tokens`"


_BACKENDS = {
    "disable_any_whitespace": ("xgrammar", "guidance"),
    "disable_additional_properties": ("guidance",),
}
"""Key of `structured_outputs_config` -> the backends that have it."""
_SPECULATIVE = "speculative_config"
_ELSEWHERE = {
    "spec_method": (_SPECULATIVE, "method"),
    "spec_model": (_SPECULATIVE, "model"),
    "spec_tokens": (_SPECULATIVE, "num_speculative_tokens"),
    "attention_backend": ("attention_config", "backend"),
    "enable_flashinfer_autotune": ("kernel_config", "enable_flashinfer_autotune"),
    "cudagraph_capture_sizes": ("compilation_config", "cudagraph_capture_sizes"),
    "max_cudagraph_capture_size": ("compilation_config", "max_cudagraph_capture_size"),
}
"""Argument -> the argument, and the key in it, that set the same value."""
