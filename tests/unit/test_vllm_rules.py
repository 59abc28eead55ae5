"""Arguments that vLLM refuses together."""

from __future__ import annotations

from typing import Any

import pytest

from flagscale.engines.vllm.catalog import vllm_catalog
from flagscale.engines.vllm.rules import engine_violations

DEFAULTS = {option.dest: option.default for option in vllm_catalog().server.options.values()}
CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    # arguments that the engine refuses together, the one that is reported; "" if they are accepted
    (
        {
            "max_num_batched_tokens": 128,
            "max_model_len": 256,
            "enable_chunked_prefill": False,
            "max_num_seqs": 8,
        },
        "max_num_batched_tokens",
    ),
    ({"max_num_batched_tokens": 128, "max_model_len": 256, "max_num_seqs": 8}, ""),
    ({"max_num_batched_tokens": 256, "max_model_len": 256, "enable_chunked_prefill": False}, ""),
    ({"max_num_batched_tokens": 4, "max_num_seqs": 8}, "max_num_batched_tokens"),
    ({"max_num_batched_tokens": 8, "max_num_seqs": 8}, ""),
    ({"max_num_active_seqs": 9, "max_num_seqs": 8}, "max_num_active_seqs"),
    ({"max_num_active_seqs": 8, "max_num_seqs": 8}, ""),
    (
        {"max_num_batched_tokens": 128, "enable_chunked_prefill": False, "max_num_seqs": 8},
        "max_num_batched_tokens",
    ),
    ({"max_num_batched_tokens": 256, "enable_chunked_prefill": False, "max_num_seqs": 8}, ""),
    ({"long_prefill_token_threshold": 129, "max_model_len": 128}, "long_prefill_token_threshold"),
    ({"long_prefill_token_threshold": 257, "max_model_len": -1}, "long_prefill_token_threshold"),
    ({"long_prefill_token_threshold": 256}, ""),
    ({"long_prefill_token_threshold": 128, "max_model_len": 128}, ""),
    ({"decode_context_parallel_size": 2}, "decode_context_parallel_size"),
    ({"enable_lora": True, "max_loras": 2, "max_cpu_loras": 1}, "max_cpu_loras"),
    ({"enable_lora": True, "max_loras": 2, "max_cpu_loras": 2}, ""),
    ({"max_loras": 2, "max_cpu_loras": 1}, ""),
    (
        {"spec_method": "ngram", "speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
        "spec_method",
    ),
    ({"attention_backend": "TORCH_SDPA", "attention_config": {"backend": "FLASH_ATTN"}}, "attention_backend"),
    (
        {"cudagraph_capture_sizes": [1], "compilation_config": {"cudagraph_capture_sizes": [1]}},
        "cudagraph_capture_sizes",
    ),
    ({"max_cudagraph_capture_size": 4, "compilation_config": {"cudagraph_mode": "NONE"}}, ""),
    ({"speculative_config": {"num_speculative_tokens": 2}}, "speculative_config"),
    ({"spec_tokens": 2}, "spec_tokens"),
    ({"spec_method": "ngram"}, "spec_method"),
    ({"spec_method": "ngram", "spec_tokens": 2}, ""),
    ({"speculative_config": {"method": "ngram", "prompt_lookup_max": 3}}, "speculative_config"),
    ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, ""),
    ({"spec_method": "ngram", "speculative_config": {"num_speculative_tokens": 2}}, ""),
    ({"structured_outputs_config": {"disable_any_whitespace": True}}, "structured_outputs_config"),
    ({"structured_outputs_config": {"disable_any_whitespace": True, "backend": "xgrammar"}}, ""),
    (
        {"structured_outputs_config": {"disable_additional_properties": True, "backend": "xgrammar"}},
        "structured_outputs_config",
    ),
]
SERVER_CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"enable_auto_tool_choice": True}, "enable_auto_tool_choice"),
    ({"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}, ""),
    ({"enable_log_outputs": True}, "enable_log_outputs"),
    ({"enable_log_outputs": True, "enable_log_requests": True}, ""),
    ({"enable_per_request_metrics": True, "disable_log_stats": True}, "enable_per_request_metrics"),
    ({"enable_per_request_metrics": True}, ""),
]


@pytest.mark.parametrize(("keys", "blamed"), [*CONTRADICTIONS, *SERVER_CONTRADICTIONS])
def test_arguments_that_contradict_each_other(keys: dict[str, Any], blamed: str) -> None:
    found = [
        dest for dest, _ in engine_violations({**DEFAULTS, **keys}, dict.fromkeys(keys, ""), longest=256)
    ]
    assert found == ([blamed] if blamed else [])
