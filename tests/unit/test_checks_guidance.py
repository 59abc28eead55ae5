"""Guidance as a user writes it: the two keys, of a batch and of its lines, and what cannot be guided."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flagscale.checks.guidance import (
    Guidance,
    chat_violations,
    guidance_violations,
    negative_chat,
    penalty_violations,
)
from flagscale.checks.prompts import Prompt, inline_prompts, read_prompts

USER = {"role": "user", "content": "Why?"}


@pytest.mark.parametrize(
    ("given", "blamed"),
    [
        ({}, []),
        ({"guidance_scale": 3, "negative_prompt": "x"}, []),
        ({"guidance_scale": 0, "negative_prompt": [0, 7]}, []),
        ({"guidance_scale": None, "negative_prompt": None}, []),
        ({"guidance_scale": 3}, ["guidance_scale"]),
        ({"negative_prompt": "x", "guidance_scale": None}, ["negative_prompt"]),
        ({"guidance_scale": -1, "negative_prompt": ""}, ["guidance_scale", "negative_prompt"]),
        ({"guidance_scale": float("nan"), "negative_prompt": []}, ["guidance_scale", "negative_prompt"]),
        ({"guidance_scale": float("inf"), "negative_prompt": [-1]}, ["guidance_scale", "negative_prompt"]),
        ({"guidance_scale": True, "negative_prompt": [True]}, ["guidance_scale", "negative_prompt"]),
        ({"guidance_scale": "3", "negative_prompt": ["x"]}, ["guidance_scale", "negative_prompt"]),
    ],
)
def test_both_keys_are_needed_and_checked(given: dict[str, Any], blamed: list[str]) -> None:
    assert [key for key, _ in guidance_violations(given)] == blamed


@pytest.mark.parametrize(
    ("scale", "negative", "reported"),
    [
        pytest.param(10**400, "x", "`guidance_scale` takes at most 1000000, not 1000", id="10^400"),
        pytest.param(3, "a \ud800", "`negative_prompt` contains half of a surrogate pair", id="half a pair"),
        pytest.param(1e38, "x", "`guidance_scale` takes at most 1000000, not 1e+38", id="1e38"),
        pytest.param(3, [*range(99_999), "x"], "`negative_prompt` takes a text or a list", id="100 000 ids"),
    ],
)
def test_huge_values_are_refused_in_short_messages(scale: float, negative: Any, reported: str) -> None:
    ((_, what),) = guidance_violations({"guidance_scale": scale, "negative_prompt": negative})
    assert what.startswith(reported)
    assert len(what) < 200


BOTH = {"guidance_scale": 3.0, "negative_prompt": "bad"}


@pytest.mark.parametrize(
    ("of_batch", "line", "asked"),
    [
        ({}, {}, None),
        (BOTH, {}, Guidance(3.0, "bad")),
        (BOTH, {"guidance_scale": 1}, None),
        (BOTH, {"guidance_scale": 2}, Guidance(2.0, "bad")),
        (BOTH, {"negative_prompt": [4, 5]}, Guidance(3.0, (4, 5))),
        (BOTH, {"negative_prompt": None}, Guidance(3.0, "bad")),
        ({}, {"guidance_scale": 0, "negative_prompt": "worse"}, Guidance(0.0, "worse")),
        ({"negative_prompt": "bad"}, {"guidance_scale": 2}, Guidance(2.0, "bad")),
        ({"negative_prompt": "bad"}, {}, None),
        ({"guidance_scale": 2.0}, {}, None),
    ],
)
def test_the_keys_of_a_line_come_before_those_of_the_batch(
    tmp_path: Path, of_batch: dict[str, Any], line: dict[str, Any], asked: Guidance | None
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "x", **line}))
    ((prompt,), wrong) = read_prompts(file, of_batch)
    assert wrong == []
    assert prompt.guidance == asked
    assert prompt.line == {"prompt": "x", **line}


def test_other_prompts_take_the_keys_of_the_batch(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("x")
    guided = Prompt("x", guidance=Guidance(3.0, "bad"))
    assert read_prompts(file, BOTH) == ([replace(guided, number=1)], [])
    assert list(inline_prompts(["x"], BOTH)) == [guided]
    assert list(inline_prompts(["x"], {"guidance_scale": 3.0})) == [Prompt("x")]


def test_every_wrong_line_is_reported(tmp_path: Path) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    lines: list[dict[str, Any]] = [
        {"prompt": "x", "guidance_scale": -1, "negative_prompt": ""},
        {"prompt": "x", "guidance_scale": 2},
        {"messages": [{"role": "system", "content": "x"}], **BOTH},
        {"messages": [{"role": "system", "content": "x"}], **BOTH, "negative_prompt": [1]},
        {"messages": [{"role": "user", "content": [picture]}], **BOTH, "negative_prompt": [1]},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    _, wrong = read_prompts(file)
    assert [one.removeprefix(f"{file}:").partition(" ")[0] for one in wrong] == ["1:", "1:", "2:", "3:", "5:"]
    assert "this chat has none" in wrong[3]
    assert "pictures" in wrong[4]


def test_a_negative_prompt_takes_the_place_of_what_the_user_says_last() -> None:
    chat: list[dict[str, Any]] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}], "name": "me"},
        {"role": "assistant", "content": "Because"},
    ]
    assert list(chat_violations(chat, Guidance(2.0, "bad"), has_media=False)) == []
    changed = negative_chat(chat, "bad")
    assert changed == [*chat[:3], {"role": "user", "content": "bad", "name": "me"}, chat[4]]


def test_penalties_are_refused_with_their_origin() -> None:
    def blamed(sampling: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
        return [what for _, what in penalty_violations(sampling, defaults, "turn it off")]

    assert blamed({"repetition_penalty": 1, "presence_penalty": 0.0}, {"repetition_penalty": 1.3}) == []
    assert blamed({"frequency_penalty": None}, {"frequency_penalty": 0, "temperature": 0.5}) == []
    (own,) = blamed({"presence_penalty": 0.5}, {})
    assert "`presence_penalty` 0.5" in own
    (default,) = blamed({}, {"repetition_penalty": 1.3})
    assert "generation_config.json sets `repetition_penalty` 1.3" in default
    assert default.endswith("set it to 1, or turn it off")
