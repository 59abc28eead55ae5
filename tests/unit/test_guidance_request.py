"""Which requests and engines are refused with guidance, and with which words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_flagscale.guidance.request import (
    NEGATIVE,
    ROW,
    SCALE,
    Row,
    extra_args,
    is_guided,
    violations,
)

NEUTRAL = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "thinking_token_budget": None,
    "trace_decode_token_ids": None,
}


def params(given: dict[str, Any] | None, **fields: Any) -> SimpleNamespace:
    return SimpleNamespace(extra_args=given, **{**NEUTRAL, **fields})


@pytest.mark.parametrize("scale", [0, 0.0, 1, 1.5, 30])
def test_a_scale_and_a_negative_prompt_are_accepted(scale: float) -> None:
    assert [*violations(params(extra_args(scale, [3, 639])), vocabulary=640, max_model_len=3)] == []


@pytest.mark.parametrize("given", [None, {}, {"another": 1}])
def test_an_ordinary_request_is_accepted(given: dict[str, Any] | None) -> None:
    assert [*violations(params(given, repetition_penalty=1.3))] == []


@pytest.mark.parametrize("scale", [-0.5, float("nan"), float("inf"), True, "3.0", [3.0]])
def test_a_scale_that_is_no_number_of_at_least_0_is_refused(scale: Any) -> None:
    assert [*violations(params({SCALE: scale, NEGATIVE: [1]}))] == [
        f"`guidance_scale` takes a number of at least 0, not {repr(scale)[:60]}"
    ]


@pytest.mark.parametrize("scale", [1_000_001, 2e38, pytest.param(16**5000, id="thousands of digits")])
def test_a_scale_that_makes_logits_infinite_is_refused(scale: float) -> None:
    (what,) = violations(params({SCALE: scale, NEGATIVE: [1]}))
    assert what.startswith("`guidance_scale` takes at most 1000000, not ")
    assert len(what) < 140


@pytest.mark.parametrize("negative", [None, [], "text", [1.0], ["1"], [True], [-1], (1,), 5])
def test_a_negative_prompt_that_is_no_list_of_ids_is_refused(negative: Any) -> None:
    assert [*violations(params({SCALE: 3.0, NEGATIVE: negative}))] == [
        "`negative_prompt_token_ids` takes a list of token ids that is not empty"
    ]


def test_a_negative_prompt_needs_a_scale() -> None:
    assert [*violations(params({NEGATIVE: [1]}))] == ["`negative_prompt_token_ids` needs `guidance_scale`"]


def test_ids_and_length_of_the_negative_prompt_are_compared_with_the_model() -> None:
    given = params(extra_args(3.0, [3, 640, 5]))
    assert [*violations(given)] == []
    assert [*violations(given, vocabulary=640, max_model_len=3)] == [
        "`negative_prompt_token_ids`: 640 is not an id of the model's 640 tokens",
        "`negative_prompt_token_ids` has 3 tokens; the limit is 3, including the answer; shorten it or raise "
        "max_model_len",
    ]


def test_the_scheduler_s_key_is_reserved() -> None:
    given = {**extra_args(3.0, [1]), ROW: Row("a", False, 3.0, 0)}
    assert [*violations(params(given))] == ["`guided_row` is reserved for the scheduler"]


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("repetition_penalty", 1.3, "set it to 1"),
        ("presence_penalty", -0.5, "set it to 0"),
        ("frequency_penalty", 0.5, "set it to 0"),
        ("thinking_token_budget", 8, "remove it"),
        ("trace_decode_token_ids", [1], "remove it"),
    ],
)
def test_a_field_that_cannot_be_combined_is_refused_by_name(name: str, value: Any, advice: str) -> None:
    (text,) = violations(params(extra_args(3.0, [1]), **{name: value}))
    assert text.startswith(f"`{name}` ")
    assert text.endswith(advice)
    assert [*violations(params(extra_args(1, [1]), **{name: value}))] == [], "scale 1 is an ordinary request"


def test_all_mistakes_are_reported_at_once() -> None:
    wrong = params({SCALE: -1, NEGATIVE: []}, presence_penalty=1.0, frequency_penalty=1.0)
    assert len([*violations(wrong)]) == 4


def test_a_scale_of_1_is_an_ordinary_request() -> None:
    assert [is_guided(params(extra_args(scale, [1]))) for scale in (0, 0.5, 1, 1.0, 2)] == [
        *(True, True, False, False, True)
    ]
    assert not is_guided(None), "a pooling request"
