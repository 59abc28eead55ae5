"""Read one conversation in the form of LLaVA, ShareGPT, OpenAI or the_cauldron. Pure: no file is opened.

The tool that writes shards and the cooker that reads those of others both use it, so that a conversation
gives the same tokens, whoever wrote the shards. Standard library only.

Three things are decided here as LLaVA's own program does: a message's only `<image>` goes to its beginning,
`<image>` stands for a video if there are only videos, and blanks between pictures at the beginning of a
message are dropped (the chat template puts a newline there).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from energon_flagscale.formats import KINDS
from flagscale.checks.messages import (
    ASSISTANT,
    ROLES,
    SYSTEM,
    USER,
    list_of_messages,
    name_of_role,
    type_name,
    valid_text,
)
from flagscale.errors import nearest

IMAGE, VIDEO, TEXT = "image", "video", "text"
_LISTS = ("messages", "conversations", "texts")
"""The keys of a list of messages; `texts` holds pairs of a question and an answer (the_cauldron)."""
_PLACEHOLDER = re.compile(r"(<image>|<video>)")

Part = dict[str, str]
Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Messages whose picture and video parts stand for the next of `images` and `videos`.

    Those are as the source has them: a path, bytes, or a mapping with one of both.
    """

    messages: list[Message]
    images: list[Any]
    videos: list[Any]


def conversation(
    value: Any, *, add_placeholders: bool = False, files: Mapping[str, Sequence[str]] | None = None
) -> Conversation:
    """Return the conversation of a record.

    Args:
        add_placeholders: put pictures that no text mentions before the first message of the user.
        files: the `image` and `video` files beside the record in a shard; it need not name them.

    Raises:
        ValueError: it says what is wrong, and how to fix it.
    """
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object but {type_name(value)}; a sample is an object with `messages`")
    turns, is_paired = _turns(value)
    own: dict[str, list[Any]] = {IMAGE: [], VIDEO: []}
    messages = []
    for number, (role, content, is_llava) in enumerate(turns, 1):
        try:
            parts = _parts(content, own, moves_single=is_llava and not value.get(f"{IMAGE}s"))
        except ValueError as error:
            raise ValueError(f"message {number}: {error}") from None
        messages.append({"role": role, "content": parts})
    for kind in own:
        given = _references(value, kind)
        if own[kind] and given:
            raise ValueError(f"{kind}s both in the messages and under `{kind}s`; keep one")
        own[kind] = own[kind] or given or [*(files or {}).get(kind, ())]
    if any(is_llava for *_, is_llava in turns) and own[VIDEO] and not own[IMAGE]:
        _name_videos(messages)
    for kind in own:
        hint = "" if files else "; --add-placeholders puts them before the first message"
        _match(messages, kind, own[kind], hint, add=add_placeholders or is_paired)
    _check_order(messages)
    return Conversation(messages, own[IMAGE], own[VIDEO])


def _turns(value: Mapping[str, Any]) -> tuple[list[tuple[str, Any, bool]], bool]:
    """Return the messages, and whether they were pairs without placeholders.

    Of each, its role, its content, and whether it has LLaVA's form (`from` and `value`).
    """
    key, given = list_of_messages(value, _LISTS)
    turns: list[tuple[str, Any, bool]] = []
    if value.get(SYSTEM) is not None:
        turns.append((SYSTEM, value[SYSTEM], False))
    for number, one in enumerate(given, 1):
        if key == "texts":
            turns += [(role, one.get(role), False) for role in (USER, ASSISTANT)]
        else:
            content = one.get("content", one.get("value"))
            turns.append((ROLES[name_of_role(one, number, ROLES)], content, "content" not in one))
    return turns, key == "texts"


def _parts(content: Any, own: dict[str, list[Any]], *, moves_single: bool) -> list[Part]:
    """Return the parts of a message, and append what they bring with them to `own`."""
    if isinstance(content, str):
        return _parts_of_text(valid_text(content), moves_single=moves_single)
    if not isinstance(content, list):
        raise ValueError(f"its content is {type_name(content)}, not a string or a list of parts")
    parts: list[Part] = []
    for one in content:
        kind = KINDS.get(str(one.get("type"))) if isinstance(one, dict) else None
        if kind is None:
            given = one.get("type") if isinstance(one, dict) else one
            raise ValueError(f"a part of type `{given}`; {nearest(str(given), KINDS)}")
        if kind == TEXT:
            text = one.get("text")
            if not isinstance(text, str):
                raise ValueError(f"the text of a part is {type_name(text)}, not a string")
            if found := _PLACEHOLDER.search(valid_text(text)):
                raise ValueError(f"the text of a part spells {found[0]}; make it a part of its own")
            parts.append({"type": TEXT, TEXT: text})
            continue
        parts.append({"type": kind})
        named = (str(one["type"]).removeprefix("input_"), "image_url", "url", "path")
        own[kind] += [one[key] for key in named if one.get(key) is not None][:1]
    return _tidy(parts)


def _parts_of_text(text: str, *, moves_single: bool) -> list[Part]:
    pieces = _PLACEHOLDER.split(text)
    if moves_single and pieces[1:2] == ["<image>"] and len(pieces) == 3 and pieces[0]:
        pieces = ["", pieces[1], (pieces[0] + pieces[2]).strip()]
    parts: list[Part] = [
        {"type": piece[1:-1]} if at % 2 else {"type": TEXT, TEXT: piece} for at, piece in enumerate(pieces)
    ]
    return _tidy(parts)


def _tidy(parts: list[Part]) -> list[Part]:
    """Drop blanks around the pictures at the beginning of a message, and texts without a character."""
    tidy: list[Part] = []
    begins = any(part["type"] != TEXT for part in parts)
    for part in parts:
        if part["type"] == TEXT:
            text = part[TEXT].lstrip() if begins else part[TEXT]
            begins = begins and not text
            if text:
                tidy.append({"type": TEXT, TEXT: text})
        else:
            tidy.append(part)
    return tidy


def _name_videos(messages: list[Message]) -> None:
    """Have `<image>` stand for videos, if nothing else does: LLaVA's own data of videos is written so."""
    parts = [part for message in messages for part in message["content"]]
    if not any(part["type"] == VIDEO for part in parts):
        for part in parts:
            part["type"] = VIDEO if part["type"] == IMAGE else part["type"]


def _references(value: Mapping[str, Any], kind: str) -> list[Any]:
    """Return what is given under `image` or `images` (`video` or `videos`), which may be one or a list."""
    given = [value[key] for key in (kind, f"{kind}s") if value.get(key) not in (None, "", [])]
    if len(given) > 1:
        raise ValueError(f"both `{kind}` and `{kind}s`; keep one")
    if not given:
        return []
    return list(given[0]) if isinstance(given[0], list) else [given[0]]


def _match(messages: list[Message], kind: str, references: Sequence[Any], hint: str, *, add: bool) -> None:
    """Check that there is a placeholder per picture; with `add`, put them before the user's first message."""
    places = sum(part["type"] == kind for message in messages for part in message["content"])
    if add and not places and references:
        first = next((message for message in messages if message["role"] == USER), None)
        if first is not None:
            first["content"] = _tidy([{"type": kind}] * len(references) + first["content"])
            return
    if places != len(references):
        what = f"{len(references)} {kind}(s), but {places} placeholder(s) <{kind}>"
        raise ValueError(f"{what}{'' if places else hint}")


def _check_order(messages: list[Message]) -> None:
    """Check that user and assistant take turns, the assistant last, and that only the user shows pictures."""
    expected = USER
    for number, message in enumerate(messages, 1):
        role, content = message["role"], message["content"]
        if not any(part["type"] != TEXT or part[TEXT].strip() for part in content):
            raise ValueError(f"message {number} ({role}) is empty")
        if role != USER and any(part["type"] != TEXT for part in content):
            raise ValueError(f"message {number} ({role}) contains a picture or video; only the user's may")
        if role == SYSTEM and number == 1:
            continue
        if role != expected:
            raise ValueError(f"message {number} is of the {role}, but it is the turn of the {expected}")
        expected = ASSISTANT if role == USER else USER
    if expected == ASSISTANT or len(messages) < 2:
        raise ValueError(
            "the last message is not an answer of the assistant, so nothing would be learnt from it"
        )


def characters(messages: list[Message]) -> int:
    """Return the length of all texts of a conversation."""
    return sum(len(part.get(TEXT, "")) for message in messages for part in message["content"])
