"""What the fields of a guided request do, and what it draws: one engine answers all of them at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from flagscale_testing.engines import ENVIRONMENT
from flagscale_testing.guided import Case, byte_level_tokenizer, greedy_answers, make_llama
from flagscale_testing.guided_engine import answers_in_this_process
from tests.inside_vllm.test_guidance_draws import DRAWS, p_value

SCALE = 3.0
PROMPT = [257, *range(40, 57)]
NEGATIVE = [257, 3, 4, 5]
GREEDY = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
DRAWN = {"temperature": 1.0, "max_tokens": 8, "ignore_eos": True, "seed": 7}
CHOICES = ["yes!", "no", "not now"]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "allowed_token_ids": {**GREEDY, "allowed_token_ids": [50, 60, 70]},
    "logit_bias": {**GREEDY, "logit_bias": {300: 60.0}},
    "structured_outputs": {**GREEDY, "ignore_eos": False, "structured_outputs": {"choice": CHOICES}},
    "bad_words": {**GREEDY, "max_tokens": 60, "bad_words": [*LETTERS]},
    "min_tokens": {**GREEDY, "min_tokens": 4, "stop_token_ids": [*range(320)]},
    "stop": {**GREEDY, "max_tokens": 100, "stop": [*LETTERS]},
    "repetition_detection": {
        **GREEDY,
        "max_tokens": 100,
        "allowed_token_ids": [50],
        "repetition_detection": {"max_pattern_size": 2, "min_pattern_size": 1, "min_count": 3},
    },
    "three answers": {**DRAWN, "n": 3},
    "three answers again": {**DRAWN, "n": 3},
    "second answer alone": {**DRAWN, "seed": 8},
    "no seed": {**DRAWN, "seed": -1, "max_tokens": 30},
    "no seed again": {**DRAWN, "seed": None, "max_tokens": 30},
    "almost cold": {**DRAWN, "temperature": 0.001},
    "limits": {**DRAWN, "top_k": 50, "top_p": 0.9, "min_p": 0.01},
    "logprobs": {**GREEDY, "max_tokens": 1, "allowed_token_ids": [50], "logprobs": 1},
    "logprobs without guidance": {
        **GREEDY,
        "max_tokens": 1,
        "allowed_token_ids": [50],
        "logprobs": 1,
        "extra_args": None,
    },
    "prompt_logprobs": {**GREEDY, "prompt_logprobs": 1},
    "flat_logprobs": {**GREEDY, "logprobs": 1, "flat_logprobs": True},
    "skip_reading_prefix_cache": {**GREEDY, "skip_reading_prefix_cache": True},
    "a scale as text": {
        **GREEDY,
        "extra_args": {"guidance_scale": "3.0", "negative_prompt_token_ids": NEGATIVE},
    },
    "a penalty": {**GREEDY, "repetition_penalty": 1.3},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("guided") / "llama")


Found = dict[str, dict[str, Any]]
ANSWERS = 100
"""Per request for one token; each answer has a seed of its own, the request's and its number."""


@pytest.fixture(scope="module")
def found(model: Path) -> Found:
    drawn = {
        f"one token, {seed}": {"temperature": 1.0, "max_tokens": 1, "n": ANSWERS, "seed": seed}
        for seed in range(0, DRAWS, ANSWERS)
    }
    every = {**REQUESTS, **drawn}
    guidance = {"guidance_scale": SCALE, "negative_prompt_token_ids": NEGATIVE}
    asked = [(PROMPT, {"extra_args": guidance, **fields}) for fields in every.values()]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}.items():
            patch.setenv(name, value)
        got = answers_in_this_process(model, asked, async_scheduling=True, max_num_seqs=256)
    return dict(zip(every, got, strict=True))


def test_greedy_tokens_are_those_of_transformers(found: Found, model: Path) -> None:
    case = Case(tuple(PROMPT), tuple(NEGATIVE), SCALE)
    assert found["greedy"]["tokens"] == greedy_answers(model, [case], GREEDY["max_tokens"])


def test_a_constraint_masks_what_guidance_draws(found: Found) -> None:
    answer = found["structured_outputs"]
    assert byte_level_tokenizer().decode(answer["tokens"][0], skip_special_tokens=True) in CHOICES
    assert answer["finished"] == ["stop"]


def test_masks_and_shifts_of_the_logits_hold_with_guidance(found: Found) -> None:
    (greedy,) = found["greedy"]["tokens"]
    assert set(found["allowed_token_ids"]["tokens"][0]) <= {50, 60, 70}
    assert found["logit_bias"]["tokens"] == [[300] * 8]
    letters = {ord(letter) - 32 for letter in LETTERS}
    assert not letters & set(found["bad_words"]["tokens"][0])
    assert len(greedy) == 8


def test_stopping_works_with_guidance(found: Found) -> None:
    (minimal,) = found["min_tokens"]["tokens"]
    assert all(token >= 320 for token in minimal[:4])
    assert found["min_tokens"]["finished"] == ["stop"]
    assert found["stop"]["finished"] == ["stop"]
    assert found["repetition_detection"]["tokens"] == [[50] * 3]


def test_answers_of_one_request_have_their_own_seeds(found: Found) -> None:
    three = found["three answers"]["tokens"]
    assert len({tuple(one) for one in three}) == 3
    assert found["three answers again"]["tokens"] == three
    assert found["second answer alone"]["tokens"] == [three[1]]
    assert found["no seed"]["tokens"] != found["no seed again"]["tokens"]
    assert found["almost cold"]["tokens"] == found["greedy"]["tokens"]
    assert len(found["limits"]["tokens"][0]) == 8


def test_log_probabilities_are_those_of_the_prompt_before_guidance(found: Found) -> None:
    ((guided,),) = found["logprobs"]["logprobs"]
    ((ordinary,),) = found["logprobs without guidance"]["logprobs"]
    assert guided == pytest.approx(ordinary, abs=1e-4)
    for name in ("prompt_logprobs", "flat_logprobs", "skip_reading_prefix_cache"):
        assert found[name]["tokens"] == found["greedy"]["tokens"]


def test_refusals_name_the_field(found: Found) -> None:
    assert found["a scale as text"] == {"error": "`guidance_scale` takes a number of at least 0, not '3.0'"}
    assert found["a penalty"] == {
        "error": "`repetition_penalty` 1.3 cannot be combined with `guidance_scale`; set it to 1"
    }


def test_an_engine_draws_from_the_distribution_of_transformers(found: Found, model: Path) -> None:
    reference = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        prompt, negative = (reference(torch.tensor([ids])).logits[0, -1] for ids in (PROMPT, NEGATIVE))
    drawn = [answer for name, one in found.items() if "one token" in name for answer in one["tokens"]]
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=len(prompt))
    assert counts.sum() == DRAWS

    def p(scale: float) -> float:
        return p_value(counts, (negative + scale * (prompt - negative)).softmax(0) * DRAWS)

    assert p(SCALE) > 0.001
    assert p(SCALE - 1) < 0.001
