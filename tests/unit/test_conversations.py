"""Conversations of text in OpenAI's and ShareGPT's form; mistakes have a kind, and are reported in words."""

from __future__ import annotations

from typing import Any

import pytest

from flagscale.checks.conversations import chat_of
from flagscale.checks.messages import EMPTY, FORM, NO_ANSWER, ROLE, ConversationError

USER: dict[str, Any] = {"role": "user", "content": "?"}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "x"}


def messages(*given: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"messages": [*given], **others}


def test_messages_of_openai() -> None:
    chat = chat_of(messages({"role": "system", "content": "Be brief."}, USER, ANSWER, id=3))
    assert chat.messages == ({"role": "system", "content": "Be brief."}, USER, ANSWER)
    assert chat.learnt == (False, False, True)
    assert chat.tools == ()


def test_lists_of_texts_stay_lists() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat_of(messages(USER, {"role": "assistant", "content": parts})).messages[1]["content"] == parts


def test_conversations_of_sharegpt_with_calls_of_tools() -> None:
    chat = chat_of(
        {
            "system": "Be brief.",
            "conversations": [
                {"from": "human", "value": "Rain?"},
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Ulm"}}'},
                {"from": "observation", "value": "no"},
                {"from": "gpt", "value": "No."},
            ],
            "tools": '[{"name": "weather", "parameters": {}}]',
        }
    )
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}
    assert chat.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "no"},
        {"role": "assistant", "content": "No."},
    )
    assert chat.tools == ({"type": "function", "function": {"name": "weather", "parameters": {}}},)
    assert chat.learnt == (False, False, True, False, True)


def test_a_blank_system_text_of_sharegpt_is_none() -> None:
    value = {"system": " ", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    assert [message["role"] for message in chat_of(value).messages] == ["user", "assistant"]


def test_arguments_of_calls_become_objects_and_nulls_are_left_out() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    called = {"role": "assistant", "content": None, "tool_calls": [call], "name": None}
    (message,) = chat_of(messages(called)).messages
    assert message == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{**call, "function": {"name": "f", "arguments": {"a": 1}}}],
    }
    assert "content" not in chat_of(messages({"role": "assistant", "tool_calls": [call]})).messages[0]


def test_functions_of_openai_are_tools_and_their_calls_are_calls_of_tools() -> None:
    called = {"name": "weather", "arguments": '{"city": "Ulm"}'}
    chat = chat_of(
        messages(
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": None, "function_call": called},
            {"role": "function", "name": "weather", "content": "no"},
            {**ANSWER, "function_call": None},
            functions=[{"name": "weather", "parameters": {}}],
            tools=None,
        )
    )
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}
    assert chat.messages[1:] == (
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "name": "weather", "content": "no"},
        ANSWER,
    )
    assert chat.tools == ({"type": "function", "function": {"name": "weather", "parameters": {}}},)
    assert chat.learnt == (False, True, False, True)


def test_the_chosen_roles_are_learnt_except_messages_without_a_loss() -> None:
    quiet = ({**ANSWER, "loss": False}, {**ANSWER, "weight": 0}, {**ANSWER, "loss": True, "weight": 1})
    chat = chat_of(messages(USER, *quiet), roles=("assistant", "user"))
    assert chat.learnt == (True, False, False, True)
    assert all(message == ANSWER for message in chat.messages[1:])


@pytest.mark.parametrize(
    ("value", "reason", "what"),
    [
        ([USER], FORM, "not a JSON object but a list; a conversation is an object with `messages`"),
        ({"text": "x"}, FORM, r"no `messages` or `conversations` \(found: text\)"),
        ({"messages": [], "conversations": None}, EMPTY, "`messages` is empty; it must be a list"),
        ({"messages": [USER], "conversations": [USER]}, FORM, "both `messages` and `conversations`"),
        ({"messages": [USER, "x"]}, FORM, "message 2 is a string, not an object"),
        (messages(USER), NO_ANSWER, "no message of the role assistant has a loss"),
        (messages(USER, {**ANSWER, "loss": False}), NO_ANSWER, "no message of the role assistant"),
        (messages({"role": "asistant", "content": "x"}), ROLE, "unknown role `asistant`; did you mean"),
        (messages({"content": "x"}), FORM, r"message 1 has no `role` \(found: content\)"),
        (messages(USER, {"role": "assistant", "content": " \n"}), EMPTY, r"message 2 \(assistant\) is empty"),
        (messages(USER, {"role": "assistant", "content": []}), EMPTY, r"message 2 \(assistant\) is empty"),
        (messages(USER, {"role": "assistant"}), FORM, "message 2: its content is null, not a string or a"),
        (messages({"role": "user", "content": [{"type": "image_url"}]}), FORM, "a part of type `image_url`"),
        (messages({"role": "user", "content": "\ud800"}), FORM, "message 1: half of a surrogate pair"),
        (messages({**USER, "name": "\ud800"}), FORM, "message 1: half of a surrogate pair"),
        (messages(USER, {**ANSWER, "weight": 0.5}), FORM, "message 2: `weight` is 0.5; it must be 0 or 1"),
        (messages(USER, ANSWER, tools="[1]"), FORM, "`tools` is not a list of objects, or JSON of one"),
        (messages(USER, ANSWER, tools="{"), FORM, "not JSON: '{'"),
        (messages(USER, ANSWER, functions="f"), FORM, "not JSON: 'f'"),
        (messages(USER, ANSWER, functions={"name": "f"}), FORM, "`functions` is not a list of objects"),
        (messages(USER, ANSWER, functions=[{}], tools=[{}]), FORM, "both `tools` and `functions`; give one"),
        (messages({**ANSWER, "function_call": "f"}), FORM, "message 1: not JSON: 'f'"),
        (messages({**ANSWER, "function_call": {}}), FORM, "message 1: its function_call is not JSON with"),
        (
            messages({**ANSWER, "function_call": {"name": "f"}, "tool_calls": [{}]}),
            FORM,
            "message 1: both `tool_calls` and `function_call`; give one of them",
        ),
        (messages(USER, ANSWER, system=3), FORM, "`system` is a number, not a string"),
        (messages({**ANSWER, "tool_calls": "f"}), FORM, "message 1: `tool_calls` is a string, not a list"),
        (
            messages({**ANSWER, "tool_calls": [{}]}),
            FORM,
            "message 1: a call of `tool_calls` has no `function`",
        ),
        (
            messages({**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}),
            FORM,
            "message 1: the arguments of a call are a list, not an object",
        ),
        (
            {"conversations": [{"from": "function_call", "value": "call f"}]},
            FORM,
            "message 1: not JSON: 'call f'",
        ),
    ],
)
def test_mistakes_have_a_kind_and_are_reported_in_words(value: Any, reason: str, what: str) -> None:
    with pytest.raises(ConversationError, match=what) as caught:
        chat_of(value)
    assert caught.value.reason == reason
