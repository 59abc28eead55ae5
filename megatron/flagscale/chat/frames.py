"""What a template writes around the texts of messages, read from a rendering with marks in their place."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flagscale.checks.messages import ASSISTANT, Message

Span = tuple[int, int]
# Characters for private use, which no conversation contains.
_MARK = "\ue0f0{}\ue0f1"
MARK = _MARK.format(0)
MARKS = re.compile("\ue0f0(\\d+)\ue0f1")
_PLAIN = {"role", "content"}


@dataclass(frozen=True)
class RenderedText:
    """The text of a conversation, and its answers as `(first, end)` characters, in order."""

    text: str
    answers: tuple[Span, ...]


@dataclass(frozen=True)
class Answer:
    """An answer: the places of its first and last text, and the characters before and after them."""

    first: int
    last: int
    before: int
    after: int


@dataclass(frozen=True)
class Frame:
    """What a template writes around texts: `gaps[n]` before text n, and the last one at the end."""

    gaps: tuple[str, ...]
    answers: tuple[Answer, ...]

    def filled(self, texts: Sequence[str]) -> RenderedText:
        """Return the conversation with these texts."""
        starts, length = [], 0
        for gap, text in zip(self.gaps, texts, strict=False):
            starts.append(length + len(gap))
            length += len(gap) + len(text)
        pieces = [piece for pair in zip(self.gaps, texts, strict=False) for piece in pair]
        spans = (
            (starts[one.first] - one.before, starts[one.last] + len(texts[one.last]) + one.after)
            for one in self.answers
        )
        return RenderedText("".join([*pieces, self.gaps[-1]]), tuple(spans))


def is_plain(message: Message) -> bool:
    """Return whether a message consists of a role and a content: only then its form determines its frame."""
    return message.keys() == _PLAIN and message["content"] is not None


def texts_of(content: Any) -> list[str]:
    """Return the texts of a content."""
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content or () if part["type"] == "text"]


def form_of(content: Any) -> tuple[str, ...] | None:
    """Return the types of a content's parts; None if it is a text."""
    return None if isinstance(content, str) else tuple(part["type"] for part in content)


def marked(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with a mark in place of each text."""
    numbers = itertools.count()

    def with_marks(content: Any) -> Any:
        if isinstance(content, str):
            return _MARK.format(next(numbers))
        return [
            {**part, "text": _MARK.format(next(numbers))} if part["type"] == "text" else part
            for part in content
        ]

    return [{**message, "content": with_marks(message["content"])} for message in messages]


def exchanged(message: Message) -> Message:
    """Return a message that says no more than a mark; those of other roles keep what belongs to them."""
    kept = {"role": ASSISTANT} if message["role"] == ASSISTANT else message
    is_list = isinstance(message.get("content"), list)
    return {**kept, "content": [{"type": "text", "text": MARK}] if is_list else MARK}


def ends_with_text(content: Any) -> bool:
    return isinstance(content, str) or (bool(content) and content[-1]["type"] == "text")


def after_last(prompts: Sequence[str], gap: str) -> int:
    """Return how many characters of a gap follow the first of these prompts that is in it; 0 if none is."""
    ends = [gap.rfind(prompt) + len(prompt) for prompt in prompts if prompt in gap]
    return len(gap) - ends[0] if ends else 0


def mark_of_turn(ending: str) -> str:
    """Return what ends a turn, of all that follows its text, without the blanks before the next turn."""
    return ending.rstrip() or ending
