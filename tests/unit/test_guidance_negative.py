"""Negative prompts of a batch: which ids they get, and which ones the engine cannot take."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from flagscale.checks.guidance import Guidance
from flagscale.checks.prompts import Prompt
from vllm_flagscale.guidance.negative import guided_params, negatives, sampling_violations


class TooLongError(Exception):
    """What vLLM raises; to import it would take seconds."""


@dataclass
class Params:
    """The fields of SamplingParams that matter here."""

    extra_args: dict[str, Any] | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    thinking_token_budget: int | None = None
    trace_decode_token_ids: list[int] | None = None

    def clone(self) -> Params:
        return replace(self)


@pytest.fixture(autouse=True)
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.exceptions", SimpleNamespace(VLLMValidationError=TooLongError))


class Renderer:
    """Makes one token per letter, and counts the texts."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def render_cmpl(self, prompts: list[dict[str, str]]) -> list[dict[str, Any]]:
        ((_, text),) = prompts[0].items()
        self.texts.append(text)
        if len(text) > 8:
            raise TooLongError("too long for this model")
        return [{"prompt_token_ids": [ord(letter) for letter in text]}]


def engine() -> Any:
    model = SimpleNamespace(max_model_len=8, get_vocab_size=lambda: 128)
    return SimpleNamespace(model_config=model, renderer=Renderer())


def guided(negative: str | tuple[int, ...]) -> Prompt:
    return Prompt("x", guidance=Guidance(2.0, negative))


def test_texts_are_tokenized_once_and_ids_are_taken_as_they_are() -> None:
    prompts = [*enumerate([guided("ab"), Prompt("x"), guided((7, 8)), guided("ab")], start=5)]
    found, wrong = negatives(made := engine(), prompts, chat=False)
    assert found == {5: [97, 98], 7: [7, 8], 8: [97, 98]}
    assert wrong == []
    assert made.renderer.texts == ["ab"]


def test_every_negative_prompt_that_does_not_fit_is_reported() -> None:
    prompts = [
        guided((128,)),
        guided((1,)),
        guided((1,) * 8),
        guided("a text that is long"),
        guided((200,) * 9),
    ]
    _, wrong = negatives(engine(), [*enumerate(prompts)], chat=False)
    assert [one.partition(":")[0] for one in wrong] == [
        "prompt 0",
        "prompt 2",
        "prompt 3",
        "prompt 4",
        "prompt 4",
    ]
    assert "128 is not an id of the model's 128 tokens" in wrong[0]
    assert "has 8 tokens; the limit is 8" in wrong[1]
    assert "too long for this model" in wrong[2]


def test_guided_prompts_have_parameters_of_their_own() -> None:
    params = Params(extra_args={"own": 1})
    changed = guided_params(params, 3.0, (4, 5))
    assert changed.extra_args == {"own": 1, "guidance_scale": 3.0, "negative_prompt_token_ids": [4, 5]}
    assert params.extra_args == {"own": 1}


def test_sampling_that_cannot_be_guided_is_reported_once() -> None:
    params = Params(presence_penalty=0.5)
    (wrong,) = sampling_violations(params, params, None)
    assert "penalt" in wrong
    assert sampling_violations(None, Params()) == []
