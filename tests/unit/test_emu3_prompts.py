"""The chat template of Emu3 begins with BOS, whoever wrote it; ids of negative prompts exist."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flagscale.checks.emu3 import grid_of
from flagscale.checks.emu3_vocabulary import CHAT_TEMPLATE
from vllm_flagscale.emu3.prompts import chat_template, picture_request


def test_a_template_begins_with_bos() -> None:
    assert chat_template(None) == chat_template("") == "{{ bos_token }}" + CHAT_TEMPLATE
    assert chat_template("{{ messages }}") == "{{ bos_token }}{{ messages }}"
    assert chat_template(chat_template("{{ messages }}")) == "{{ bos_token }}{{ messages }}"
    assert chat_template("<|extra_203|>{{ messages }}") == "<|extra_203|>{{ messages }}"


class PlayedTokenizer:
    """One token per character, of 300 tokens."""

    bos_token = "^"

    def __call__(self, text: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[*text.encode()])

    def __len__(self) -> int:
        return 300

    def get_added_vocab(self) -> dict[str, int]:
        return {"<image>": 299}


def test_ids_of_a_negative_prompt_are_those_of_the_model() -> None:
    """Otherwise a batch fails after the engine has started, which takes minutes."""
    grid = grid_of("64x48")
    asked = picture_request(PlayedTokenizer(), "a cat", grid, 512, negative=[5, 299])
    assert asked.negative == (5, 299)
    with pytest.raises(ValueError, match="300 is not an id of the model's 300 tokens"):
        picture_request(PlayedTokenizer(), "a cat", grid, 512, negative=[5, 300])
