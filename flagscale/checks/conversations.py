"""Read one conversation of text, with calls of tools, in the form of OpenAI or ShareGPT.

Pure: no file is opened. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from flagscale.checks.messages import (
    ASSISTANT,
    EMPTY,
    FORM,
    NO_ANSWER,
    ROLES,
    SYSTEM,
    TOOL,
    ConversationError,
    Message,
    list_of_messages,
    name_of_role,
    type_name,
    valid_text,
)
from flagscale.frozen import dataclass

_CALL = "function_call"
CHAT_ROLES: Mapping[str, str] = {
    **ROLES,
    "developer": "developer",
    "tool": TOOL,
    "function": TOOL,
    "observation": TOOL,
    _CALL: ASSISTANT,
}
"""Roles in conversations of text alone, and what they become."""
_LISTS = ("messages", "conversations")
_TOOLS = ("tools", "functions")
"""The keys of the tools of a conversation; OpenAI had the second one before, with `function_call`."""
_LOSS = ("loss", "weight")


@dataclass(frozen=True)
class Chat:
    """A conversation as chat templates take it."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    learnt: tuple[bool, ...]
    """For each message, whether it is an answer."""


def chat_of(value: Any, roles: Collection[str] = (ASSISTANT,)) -> Chat:
    """Return the conversation of a record; messages of `roles` are answers, unless they say otherwise.

    Raises:
        ConversationError: it says what is wrong, and how to fix it.
    """
    if not isinstance(value, dict):
        what = f"not a JSON object but {type_name(value)}; a conversation is an object with `messages`"
        raise ConversationError(FORM, what)
    _, given = list_of_messages(value, _LISTS)
    messages: list[Message] = []
    if isinstance(system := value.get(SYSTEM), str) and system.strip():
        messages.append({"role": SYSTEM, "content": valid_text(system)})
    elif system is not None and not isinstance(system, str):
        raise ConversationError(FORM, f"`system` is {type_name(system)}, not a string")
    losses = [True] * len(messages)
    for number, one in enumerate(given, 1):
        messages.append(_message(one, number))
        losses.append(_has_loss(one, number))
    learnt = tuple(has and one["role"] in roles for has, one in zip(losses, messages, strict=True))
    if not any(learnt):
        what = f"no message of the role {', '.join(roles)} has a loss, so nothing would be learnt from it"
        raise ConversationError(NO_ANSWER, what)
    return Chat(tuple(messages), _tools(value), learnt)


def _message(given: Mapping[str, Any], number: int) -> Message:
    """Return a message with `role` and `content`; other keys are kept for the template, but not nulls."""
    name = name_of_role(given, number, CHAT_ROLES)
    try:
        given = _as_now(given)
        content = given.get("content", given.get("value"))
        others = {
            key: value
            for key, value in given.items()
            if value is not None and key not in ("role", "from", "content", "value", *_LOSS)
        }
        _check_texts(others)
        if name == _CALL:
            return {"role": ASSISTANT, "content": "", "tool_calls": [*_calls(content)]}
        if calls := others.get("tool_calls"):
            others["tool_calls"] = [*_with_objects(calls)]
        message = {"role": CHAT_ROLES[name], **_content(given, content), **others}
    except ConversationError as error:
        raise ConversationError(error.reason, f"message {number}: {error}") from None
    if message["role"] != TOOL and not calls and not _has_text(content):
        raise ConversationError(EMPTY, f"message {number} ({message['role']}) is empty")
    return message


def _as_now(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a message with `tool_calls` instead of the `function_call` that OpenAI had before."""
    if message.get(_CALL) is None:
        return message
    if message.get("tool_calls"):
        raise ConversationError(FORM, f"both `tool_calls` and `{_CALL}`; give one of them")
    others = {key: value for key, value in message.items() if key != _CALL}
    return {**others, "tool_calls": [*_calls(message[_CALL])]}


def _content(given: Mapping[str, Any], content: Any) -> dict[str, Any]:
    """Return the content as the file has it: a text or a list of texts, or none beside calls of tools."""
    if isinstance(content, str):
        return {"content": valid_text(content)}
    if content is None and given.get("tool_calls"):
        return {"content": None} if "content" in given else {}
    if not isinstance(content, list):
        what = f"its content is {type_name(content)}, not a string or a list of parts"
        raise ConversationError(FORM, what)
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type_name(part)
        if kind != "text" or not isinstance(part.get("text"), str):
            what = f"a part of type `{kind}`; only parts of text are read here (llava.py reads pictures)"
            raise ConversationError(FORM, what)
        valid_text(part["text"])
    return {"content": [{"type": "text", "text": part["text"]} for part in content]}


def _has_text(content: Any) -> bool:
    texts = [content] if isinstance(content, str) else [part["text"] for part in content or ()]
    return any(text.strip() for text in texts)


def _has_loss(message: Mapping[str, Any], number: int) -> bool:
    """Return whether a message has a loss: `loss` (true, false) or OpenAI's `weight` (0, 1) may deny it."""
    for key in _LOSS:
        value = message.get(key)
        if value is not None and value not in (0, 1):
            what = f"message {number}: `{key}` is {value!r}; it must be 0 or 1, true or false"
            raise ConversationError(FORM, what)
    return all(message.get(key) is None or bool(message[key]) for key in _LOSS)


def _calls(content: Any) -> Iterator[dict[str, Any]]:
    """Yield the calls in a `function_call`: `name` and `arguments`, in ShareGPT as JSON, or a list of it."""
    given = _json(content) if isinstance(content, str) else content
    for one in given if isinstance(given, list) else [given]:
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            what = "its function_call is not JSON with `name` and `arguments`"
            raise ConversationError(FORM, what)
        arguments = _object(one.get("arguments") or {})
        yield {"type": "function", "function": {"name": one["name"], "arguments": arguments}}


def _with_objects(calls: Any) -> Iterator[dict[str, Any]]:
    """Yield OpenAI's calls of tools with their arguments as objects, as templates and vLLM take them."""
    if not isinstance(calls, list):
        raise ConversationError(FORM, f"`tool_calls` is {type_name(calls)}, not a list")
    for one in calls:
        function = one.get("function", one) if isinstance(one, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ConversationError(FORM, "a call of `tool_calls` has no `function` with a `name`")
        called = {**function, "arguments": _object(function.get("arguments") or {})}
        yield {**one, "function": called} if "function" in one else called


def _object(arguments: Any) -> Any:
    found = _json(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(found, dict):
        raise ConversationError(FORM, f"the arguments of a call are {type_name(found)}, not an object")
    return found


def _tools(value: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Return the tools of a conversation: a list of objects, or JSON of one, as ShareGPT has it."""
    present = [key for key in _TOOLS if value.get(key)]
    if not present:
        return ()
    if len(present) > 1:
        raise ConversationError(FORM, "both `tools` and `functions`; give one of them")
    (key,) = present
    given = value[key]
    found = _json(given) if isinstance(given, str) and given.strip() else given
    if not found:
        return ()
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ConversationError(FORM, f"`{key}` is not a list of objects, or JSON of one")
    _check_texts(found)
    return tuple(one if "type" in one else {"type": "function", "function": one} for one in found)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ConversationError(FORM, f"not JSON: {text[:60]!r}") from None


def _check_texts(value: Any) -> None:
    """Raise ConversationError if a text anywhere in a JSON value is no valid text."""
    if isinstance(value, str):
        valid_text(value)
    elif isinstance(value, dict | list):
        for one in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_texts(one)
