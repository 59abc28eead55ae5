"""`make demo-guidance` measures how much better answers fit the prompt, and fails if that does not rise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from tools import demo_guidance

PROMPT, NEGATIVE, ANSWER = [1, 2], [3], 7


class Played:
    """A server whose answers fit the prompt as much better as `gain` says for their scale."""

    def __init__(self, gain: Callable[[float], float]) -> None:
        self.gain = gain
        self.scale = 1.0
        self.asked: list[Mapping[str, Any]] = []
        self.models = SimpleNamespace(list=lambda: SimpleNamespace(data=[SimpleNamespace(id="aquila")]))
        self.completions = SimpleNamespace(create=self.create)

    def create(self, *, prompt: Any, extra_body: Mapping[str, Any], **more: Any) -> Any:
        if "guidance_scale" in extra_body:
            self.scale = extra_body["guidance_scale"]
            self.asked.append(extra_body)
            fields = [{"token_ids": [ANSWER] * more["max_tokens"]}] * more["n"]
        elif "prompt_logprobs" in extra_body:
            fields = [{"prompt_logprobs": self.scored(ids)} for ids in prompt]
        else:
            fields = [{"prompt_token_ids": PROMPT if prompt == demo_guidance.PROMPT else NEGATIVE}]
        choices = [SimpleNamespace(index=i, text="x", model_extra=one) for i, one in enumerate(fields)]
        return SimpleNamespace(choices=choices)

    def scored(self, ids: list[int]) -> list[Any]:
        likely = -1.0 if ids[0] == PROMPT[0] else -1.0 - self.gain(self.scale)
        return [None, *({str(token): {"logprob": likely if token == ANSWER else -99.0}} for token in ids[1:])]


def compared(monkeypatch: pytest.MonkeyPatch, gain: Callable[[float], float]) -> tuple[int, Played]:
    server = Played(gain)
    monkeypatch.setattr(openai, "OpenAI", lambda **_: server)
    return demo_guidance.compared(), server


def test_the_table_shows_the_gain_per_scale(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, server = compared(monkeypatch, lambda scale: 0.1 * scale)
    assert code == 0
    assert [one["guidance_scale"] for one in server.asked] == [1, 2, 4]
    assert {one["negative_prompt"] for one in server.asked} == {demo_guidance.NEGATIVE}
    printed = capsys.readouterr().out
    assert "    1   0.100  ##########\n    2   0.200" in printed
    assert "it rises with the scale" in printed


def test_guidance_without_effect_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = compared(monkeypatch, lambda _: 0.1)
    assert code == 1
    assert "error: it does not rise with the scale" in capsys.readouterr().out
