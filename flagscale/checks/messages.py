"""What all files of conversations share: lists of messages, roles, and mistakes in words. Pure.

Used for conversations of text (`flagscale.checks.conversations`) and with pictures
(`energon_flagscale.conversations`). Standard library only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from flagscale.errors import nearest

Message = dict[str, Any]
SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"
ROLES: Mapping[str, str] = {
    "system": SYSTEM,
    "user": USER,
    "human": USER,
    "assistant": ASSISTANT,
    "gpt": ASSISTANT,
}
"""Roles in files, and what they become."""

NOT_JSON = "not JSON"
FORM = "another form"
ROLE = "unknown role"
EMPTY = "empty"
NO_ANSWER = "no answer"
TEMPLATE = "refused by the chat template"
NO_PLACE = "answers cannot be found"
TOO_LONG = "longer than --longest"


class ConversationError(ValueError):
    """A conversation that cannot become text to train on: the message says why, `reason` is its kind."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason


def list_of_messages(value: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, list[dict[str, Any]]]:
    """Return the only one of these keys that a record has, and its list of objects.

    Raises:
        ConversationError: there is none, or more than one, or it is no such list.
    """
    present = [key for key in keys if value.get(key) is not None]
    if len(present) != 1:
        found = f"found: {', '.join(value) or 'none'}"
        what = f"both `{present[0]}` and `{present[1]}`" if present else "no `messages` or `conversations`"
        raise ConversationError(FORM, f"{what} ({found})")
    (key,) = present
    given = value[key]
    if not isinstance(given, list) or not given:
        what = f"`{key}` is {'empty' if given == [] else type_name(given)}; it must be a list of messages"
        raise ConversationError(EMPTY if given == [] else FORM, what)
    for number, one in enumerate(given, 1):
        if not isinstance(one, dict):
            raise ConversationError(FORM, f"message {number} is {type_name(one)}, not an object")
    return key, given


def name_of_role(message: Mapping[str, Any], number: int, roles: Collection[str]) -> str:
    """Return the role of message `number` as the file names it; raises ConversationError if it is unknown."""
    name = message.get("role", message.get("from"))
    if not isinstance(name, str):
        what = f"message {number} has no `role` (found: {', '.join(message) or 'none'})"
        raise ConversationError(FORM, what)
    if name not in roles:
        hint = nearest(name, roles)
        raise ConversationError(ROLE, f"message {number}: unknown role `{name}`{'; ' + hint if hint else ''}")
    return name


def valid_text(text: str) -> str:
    """Return a text; raises ConversationError if it has half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        what = "half of a surrogate pair, which is not a character"
        raise ConversationError(FORM, what) from None
    return text


def type_name(value: Any) -> str:
    """Return the type of a JSON value for people, with its article."""
    names = {str: "a string", list: "a list", dict: "an object", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
