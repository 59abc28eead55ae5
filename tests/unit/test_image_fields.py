"""The fields of requests for pictures: what is taken, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vllm_flagscale.emu3.image_fields import Asked, FieldError, read


def test_what_is_not_given_is_left_to_the_model() -> None:
    assert read({"prompt": "a cat"}) == Asked("a cat")
    every = ("model", "n", "size", "seed", "negative_prompt", "guidance_scale", "user", "style", "stream")
    assert read({"prompt": "a cat", **dict.fromkeys(every)}) == Asked("a cat")
    assert read({"prompt": "a cat", "size": "auto"}).size is None


def test_fields_of_guidance_and_of_sampling_are_taken() -> None:
    body = {
        "prompt": "a cat",
        "model": "emu3",
        "n": 3,
        "size": "16:9",
        "seed": 0,
        "guidance_scale": 0,
        "negative_prompt": "a dog",
        "prompt_suffix": "",
        "temperature": 0.5,
        "top_k": 10,
        "top_p": 1,
    }
    guidance = {"scale": 0, "negative": "a dog", "suffix": ""}
    sampling = {"temperature": 0.5, "top_k": 10, "top_p": 1}
    assert read(body) == Asked("a cat", "emu3", 3, "16:9", 0, guidance, sampling)


def test_fields_that_ask_for_what_happens_anyway_are_accepted() -> None:
    body = {
        "prompt": "a cat",
        "response_format": "b64_json",
        "output_format": "png",
        "quality": "auto",
        "background": "opaque",
        "stream": False,
        "partial_images": 0,
        "user": "me",
        "moderation": "auto",
    }
    assert read(body) == Asked("a cat")


@pytest.mark.parametrize(
    ("field", "value", "reported"),
    [
        ("prompt", " ", "`prompt` takes a text that is not empty, not ' '"),
        ("prompt", ["a"], "`prompt` takes a text that is not empty, not ['a']"),
        ("n", 0, "`n` takes a whole number from 1 to 10, not 0"),
        ("n", 11, "`n` takes a whole number from 1 to 10, not 11"),
        ("n", True, "`n` takes a whole number from 1 to 10, not True"),
        ("n", 2.0, "`n` takes a whole number from 1 to 10, not 2.0"),
        ("seed", -1, "`seed` takes a whole number from 0 to 2^62, not -1"),
        ("seed", 2**63, "`seed` takes a whole number from 0 to 2^62, not 9223372036854775808"),
        ("guidance_scale", -0.1, "`guidance_scale` takes a number of at least 0, not -0.1"),
        ("guidance_scale", float("nan"), "`guidance_scale` takes a number of at least 0, not nan"),
        ("guidance_scale", float("inf"), "`guidance_scale` takes a number of at least 0, not inf"),
        ("guidance_scale", 10**400, "`guidance_scale` takes a number of at least 0, not 1000"),
        ("guidance_scale", "3", "`guidance_scale` takes a number of at least 0, not '3'"),
        ("negative_prompt", "", "`negative_prompt` takes a text that is not empty"),
        ("temperature", -1, "`temperature` takes a number of at least 0, not -1"),
        ("top_k", -1, "`top_k` takes a whole number of at least 0 (0: all tokens), not -1"),
        ("top_p", 0, "`top_p` takes a number above 0 and at most 1, not 0"),
        ("size", 512, "`size` takes `auto`, pixels like `1024x576`, or a ratio like `16:9`, not 512"),
        ("model", 1, "`model` takes the name of a model, not 1"),
        ("response_format", "url", "`response_format`: 'url' is not supported; pictures come in the answer"),
        ("quality", "hd", "`quality`: 'hd' is not supported; the model draws in one quality"),
        ("style", "vivid", "`style`: 'vivid' is not supported; describe the style in the prompt"),
        ("stream", True, "`stream`: True is not supported"),
        ("background", "transparent", "`background`: 'transparent' is not supported"),
        ("output_format", "webp", "`output_format`: 'webp' is not supported; pictures are PNG files"),
        ("guidance", 3, "unknown field `guidance`; did you mean `guidance_scale`?"),
        ("x", "y", "unknown field `x`"),
    ],
)
def test_what_is_refused_is_named(field: str, value: Any, reported: str) -> None:
    with pytest.raises(FieldError) as error:
        read({"prompt": "a cat", field: value})
    assert str(error.value).startswith(reported)
    assert error.value.field == field


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(FieldError) as error:
        read({"n": 20, "sise": "1:1"})
    wrong = ["`prompt` is missing", "`n` takes a whole number", "unknown field `sise`; did you mean `size`?"]
    assert all(what in str(error.value) for what in wrong)
    assert error.value.field == "prompt"


def test_the_same_greedy_picture_is_not_drawn_twice() -> None:
    with pytest.raises(FieldError, match="`n` above 1 needs a `temperature` above 0"):
        read({"prompt": "a cat", "n": 2, "temperature": 0})
    assert read({"prompt": "a cat", "n": 1, "temperature": 0}).sampling == {"temperature": 0}


def test_a_long_value_is_cut() -> None:
    with pytest.raises(FieldError) as error:
        read({"prompt": "a cat", "size": json.loads("[" * 500 + "]" * 500)})
    assert len(str(error.value)) < 200
