"""Sampling values, of the user and of the model's folder, that vLLM would refuse; contradicting arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flagscale.engines.vllm.catalog import vllm_catalog
from flagscale.engines.vllm.generation import generation_remarks, generation_values, generation_violations
from flagscale.engines.vllm.rules import engine_violations
from flagscale.engines.vllm.sampling import field_violations, request_violations

DEFAULTS = {option.dest: option.default for option in vllm_catalog().server.options.values()}
VOCABULARY = 320
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    # sampling, engine arguments, what is reported
    ({"temperature": -0.1}, {}, "`temperature` is -0.1; it must be at least 0 and at most 2"),
    ({"temperature": 2.5}, {}, "`temperature` is 2.5; it must be at least 0 and at most 2"),
    ({"top_p": 0}, {}, "`top_p` is 0; it must be more than 0 and at most 1"),
    ({"top_p": 1.1}, {}, "`top_p` is 1.1; it must be more than 0 and at most 1"),
    ({"top_k": -2}, {}, "`top_k` is -2; it must be at least -1"),
    ({"min_p": 1.5}, {}, "`min_p` is 1.5; it must be at least 0 and at most 1"),
    ({"presence_penalty": 3}, {}, "`presence_penalty` is 3; it must be at least -2 and at most 2"),
    ({"frequency_penalty": -3}, {}, "`frequency_penalty` is -3; it must be at least -2 and at most 2"),
    ({"repetition_penalty": 0}, {}, "`repetition_penalty` is 0; it must be more than 0"),
    ({"n": 0}, {}, "`n` is 0; it must be at least 1 and at most 16384"),
    ({"n": 2, "temperature": 0}, {}, "`n` is 2, but `temperature` 0 gives the same answer each time"),
    ({"max_tokens": 0}, {}, "`max_tokens` is 0; it must be at least 1"),
    ({"min_tokens": 9, "max_tokens": 8}, {}, "`min_tokens` is 9, more than `max_tokens` 8"),
    ({"min_tokens": 17}, {}, "`min_tokens` is 17, more than `max_tokens` 16, which is the default"),
    ({"seed": 2**64}, {}, "`seed` is 18446744073709551616; it must be at least -9223372036854775808"),
    ({"logprobs": -2}, {}, "`logprobs` is -2; it must be at least -1"),
    ({"logprobs": 21}, {}, "`logprobs` is 21, more than the engine's `max_logprobs` 20"),
    ({"logprobs": -1}, {}, "`logprobs` is -1, which are all 320, more than the engine's `max_logprobs` 20"),
    ({"prompt_logprobs": 6}, {"max_logprobs": 5}, "more than the engine's `max_logprobs` 5"),
    ({"stop": ""}, {}, "`stop` takes texts that are not empty"),
    ({"stop": ["a", ""]}, {}, "`stop` takes texts that are not empty"),
    ({"stop": ["a"], "detokenize": False}, {}, "`stop` needs text, and `detokenize` is false"),
    ({"bad_words": [""]}, {}, "`bad_words` takes texts that are not empty"),
    ({"stop_token_ids": [320]}, {}, "`stop_token_ids`: 320 is not an id of the model's 320 tokens"),
    ({"stop_token_ids": ["a"]}, {}, "`stop_token_ids` holds ids of tokens, not 'a'"),
    ({"stop_token_ids": ["3"]}, {}, "`stop_token_ids` holds ids of tokens, not '3'"),
    ({"logit_bias": {"05": 1}}, {}, "`logit_bias` holds ids of tokens, not '05'"),
    ({"logit_bias": {"5": "1"}}, {}, "`logit_bias` takes a number for the token 5, not '1'"),
    ({"logprob_token_ids": [1], "logprobs": 5}, {}, "`logprobs` is 5, but there are 1 `logprob_token_ids`"),
    ({"allowed_token_ids": []}, {}, "`allowed_token_ids` is empty"),
    ({"allowed_token_ids": [-1]}, {}, "`allowed_token_ids`: -1 is not an id"),
    ({"logit_bias": {"400": 1}}, {}, "`logit_bias`: 400 is not an id"),
    (
        {"structured_outputs": {"regx": "a"}},
        {},
        "`structured_outputs` has no key `regx`; did you mean `regex`?",
    ),
    ({"structured_outputs": {}}, {}, "give exactly one of json, regex,"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, {}, "(given: regex and choice)"),
    ({"repetition_detection": {"max_pattern_size": 3}}, {}, "`min_count` is 0; it must be at least 2"),
    ({"repetition_detection": {"min_pattern_size": 3}}, {}, "`min_pattern_size` <= `max_pattern_size`"),
    ({"stream_interval": 0}, {}, "`stream_interval` is 0; it must be at least 1"),
    ({"thinking_token_budget": -2}, {}, "`thinking_token_budget` is -2; it must be at least -1"),
]
ACCEPTED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"temperature": 0}, {}),
    ({"temperature": 1e-6, "n": 2}, {}),
    ({"temperature": 2, "top_p": 1, "top_k": -1, "min_p": 1, "n": 2, "seed": 2**64 - 1}, {}),
    ({"presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 0.01}, {}),
    ({"min_tokens": 16}, {}),
    ({"min_tokens": 8, "max_tokens": 8}, {}),
    ({"min_tokens": 100, "max_tokens": None}, {}),
    ({"logprobs": 20, "prompt_logprobs": 0}, {}),
    ({"logprobs": -1, "prompt_logprobs": 320}, {"max_logprobs": -1}),
    ({"logit_bias": {"5": -1}, "allowed_token_ids": [0, 319], "stop_token_ids": [0]}, {}),
    ({"stop": "x", "bad_words": ["y"], "stream_interval": 1, "thinking_token_budget": -1}, {}),
    ({"structured_outputs": {"regex": "a+"}}, {}),
    ({"logprob_token_ids": [1, 2], "logprobs": 2}, {}),
    ({"repetition_detection": {"max_pattern_size": 3, "min_count": 2}}, {}),
]


def violations(sampling: dict[str, Any], engine: dict[str, Any]) -> list[str]:
    found = [*field_violations(sampling)]
    found = found or [*request_violations(sampling, {}, {**DEFAULTS, **engine}, VOCABULARY, is_plain=True)]
    return [what for _, what in found]


@pytest.mark.parametrize(("sampling", "engine", "what"), REFUSED)
def test_refused_sampling(sampling: dict[str, Any], engine: dict[str, Any], what: str) -> None:
    (found,) = violations(sampling, engine)
    assert what in found


@pytest.mark.parametrize(("sampling", "engine"), ACCEPTED)
def test_accepted_sampling(sampling: dict[str, Any], engine: dict[str, Any]) -> None:
    assert violations(sampling, engine) == []


def test_every_wrong_value_is_reported_at_once() -> None:
    sampling = {"temperature": "hot", "stop": "", "logit_bias": {"x": 1, "5": None}, "structured_outputs": {}}
    assert [what.partition(", not")[0].partition(" (given")[0] for _, what in field_violations(sampling)] == [
        "`temperature` takes a number",
        "`stop` takes texts that are not empty",
        "`logit_bias` holds ids of tokens",
        "`logit_bias` takes a number for the token 5",
        "give exactly one of json, regex, choice, grammar, json_object, structural_tag",
    ]


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


@pytest.fixture
def folder(tmp_path: Path) -> str:
    values = {
        "repetition_penalty": 1.3,
        "temperature": 0.6,
        "top_p": 1.0,
        "max_new_tokens": 40,
        "top_k": None,
    }
    (tmp_path / "generation_config.json").write_text(json.dumps({**values, "eos_token_id": [1, 2]}))
    return str(tmp_path)


def test_the_values_of_the_folder_apply_unless_an_argument_or_the_user_says_otherwise(folder: str) -> None:
    values = {**DEFAULTS, "model": folder}
    taken = {"repetition_penalty": 1.3, "temperature": 0.6, "top_p": 1.0, "max_tokens": 40}
    assert generation_values(values) == taken
    override = {**values, "override_generation_config": '{"temperature":0.9,"min_p":0.1}'}
    assert generation_values(override) == {**taken, "temperature": 0.9, "min_p": 0.1}
    assert generation_values({**values, "generation_config": "vllm"}) == {}
    assert generation_values({**DEFAULTS, "model": "hub/name", "generation_config": folder}) == taken
    ((dest, server),) = generation_remarks(values)
    shown = "repetition_penalty 1.3, temperature 0.6, max_tokens 40 (chats) for requests without values"
    assert (dest, shown in server, "`generation_config: vllm` turns this off" in server) == (
        "model",
        True,
        True,
    )
    ((_, batch),) = generation_remarks(values, {"temperature": 0, "max_tokens": None})
    assert "sets repetition_penalty 1.3, max_tokens 40 for all prompts" in batch
    assert [*generation_remarks({**values, "generation_config": "vllm"})] == []
    ((_, other),) = generation_remarks({**override, "model": "hub/name", "generation_config": folder})
    assert f"generation_config.json of {folder} sets repetition_penalty 1.3, max_tokens 40" in other


def test_values_of_the_folder_that_vllm_refuses_are_reported(tmp_path: Path, folder: str) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": 3, "max_new_tokens": true}')
    values = {**DEFAULTS, "model": folder}
    assert [*generation_violations(values)] == []  # requests may have values of their own
    _, *wrong = [what for _, what in generation_remarks(values)]
    assert wrong == [
        "`temperature` is 3; it must be at least 0 and at most 2 (its generation_config.json): "
        "vLLM will refuse requests without a value of their own",
        "`max_tokens` takes a whole number, not True (its generation_config.json): "
        "vLLM will refuse requests without a value of their own",
    ]


def test_an_override_that_would_refuse_requests_is_refused() -> None:
    given = {"model": "hub/name", "override_generation_config": '{"top_p":0,"max_new_tokens":"x"}'}
    found = [*generation_violations({**DEFAULTS, **given})]
    assert {dest for dest, _ in found} == {"override_generation_config"}
    assert [what.partition(": vLLM")[0] for _, what in found] == [
        "`top_p` is 0; it must be more than 0 and at most 1",
        "`max_tokens` takes a whole number, not 'x'",
    ]


def test_a_missing_generation_config_is_refused(tmp_path: Path) -> None:
    for source, count in (("./absent", 1), (str(tmp_path), 1), ("vllm", 0), ("auto", 0), ("hub/name", 0)):
        found = [*generation_violations({**DEFAULTS, "model": "hub/name", "generation_config": source})]
        assert len(found) == count, source


@pytest.mark.parametrize("text", ["{", "", "[1]", "null"])
def test_a_generation_config_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    of_model, of_folder = {"model": str(tmp_path)}, {"model": "hub/name", "generation_config": str(tmp_path)}
    for given, blamed in ((of_model, "model"), (of_folder, "generation_config")):
        ((dest, what),) = generation_violations({**DEFAULTS, **given})
        assert dest == blamed
        assert what.startswith(f"{tmp_path}/generation_config.json: ")
        assert "vLLM would not take its sampling values and the tokens that end answers" in what


def test_a_folder_with_other_tokens_that_end_answers_is_reported(tmp_path: Path, folder: str) -> None:
    (tmp_path / "other").mkdir()
    other = tmp_path / "other/generation_config.json"
    values = {**DEFAULTS, "model": folder, "generation_config": str(other.parent)}
    for ends, count in (({}, 1), ({"eos_token_id": 2}, 1), ({"eos_token_id": [1, 2]}, 0)):
        other.write_text(json.dumps(ends))
        found = [*generation_remarks(values)]
        assert len(found) == count
    other.write_text("{}")
    ((dest, what),) = generation_remarks(values)
    assert dest == "generation_config"
    assert what.endswith("those of this folder (without `eos_token_id`), not the model's [1, 2]")


def test_notices_leave_out_values_without_effect(tmp_path: Path) -> None:
    neutral = {"top_k": -1, "top_p": 1.0, "temperature": 1, "repetition_penalty": 1, "min_p": 0}
    (tmp_path / "generation_config.json").write_text(json.dumps(neutral))
    assert [*generation_remarks({**DEFAULTS, "model": str(tmp_path)})] == []
