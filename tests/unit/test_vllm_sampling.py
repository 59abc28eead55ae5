"""Sampling values of batch inference that vLLM would refuse, and those next to them."""

from __future__ import annotations

from typing import Any

import pytest

from flagscale.engines.vllm.catalog import vllm_catalog
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
