"""Messages as text, and the characters of that text that a model learns to write.

An answer is what an assistant's message adds after the prompt for it (`add_generation_prompt`), up to and
including the mark that ends its turn. Where answers stand is read from a rendering with marks in place of the
contents, so each conversation is rendered once. Templates that change contents, or leave some out, are
rendered up to each answer instead.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flagscale.errors import first_line
from megatron.flagscale.chat.templates import rendered

ASSISTANT = "assistant"
Message = dict[str, Any]
Span = tuple[int, int]
# Characters for private use, which no conversation contains.
_MARK = "\ue0f0{}\ue0f1"
_MARKS = re.compile("\ue0f0(\\d+)\ue0f1")


class ConversationError(ValueError):
    """A conversation that cannot become text to train on; the message says why."""


@dataclass(frozen=True)
class Conversation:
    """The text of a conversation, and its answers as `(first, end)` characters, in order."""

    text: str
    answers: tuple[Span, ...]


@dataclass(frozen=True)
class _Frame:
    """What a template writes around the contents of messages with given roles.

    `gaps[n]` precedes the content of message n; the last one ends the text. Of message n's answer,
    `before[n]` characters precede its content and `after[n]` follow it.
    """

    gaps: tuple[str, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    def filled(self, contents: Sequence[str], roles: Sequence[str]) -> Conversation:
        pieces, answers, length = [], [], 0
        for number, content in enumerate(contents):
            pieces += [self.gaps[number], content]
            length += len(self.gaps[number])
            if roles[number] == ASSISTANT:
                end = length + len(content) + self.after[number]
                answers.append((length - self.before[number], end))
            length += len(content)
        return Conversation("".join([*pieces, self.gaps[-1]]), tuple(answers))


class ChatTemplate:
    """A template with the tokenizer whose special tokens it writes."""

    def __init__(self, text: str, tokenizer: Any, placeholders: dict[str, str]) -> None:
        """`text`: from `template_of`; `placeholders`: of each type of part that is not text."""
        self.text = text
        self._tokenizer, self._placeholders = tokenizer, placeholders
        self._frames: dict[tuple[str, ...], _Frame | None] = {}

    def conversation(self, messages: Sequence[Message]) -> Conversation:
        """Return the text of messages and its answers.

        Raises:
            ConversationError: the template refuses them, or it does not show where the answers are.
        """
        whole = self._rendered(messages)
        roles = tuple(message["role"] for message in messages)
        contents = [self._flat(message["content"]) for message in messages]
        if roles not in self._frames:
            self._frames[roles] = self._frame_of(roles)
        if frame := self._frames[roles]:
            for tried in (contents, [content.strip() for content in contents]):
                found = frame.filled(tried, roles)
                if found.text == whole:
                    return found
        return Conversation(whole, tuple(self._answers_by_prefix(messages, contents, whole)))

    def _rendered(self, messages: Sequence[Message], prompt: bool = False) -> str:
        try:
            return rendered(self.text, self._tokenizer, list(messages), add_generation_prompt=prompt)
        except Exception as error:  # jinja2's, or any that an expression in the template raises
            raise ConversationError(f"the chat template refuses it: {first_line(error)}") from error

    def _flat(self, content: Any) -> str:
        """Return a content as `parts.jinja` joins it."""
        if isinstance(content, str):
            return content
        text, is_leading = "", True
        for part in content:
            if part["type"] == "text":
                text, is_leading = text + part["text"], False
            else:
                text += self._placeholders[part["type"]] + ("\n" if is_leading else "")
        return text

    def _frame_of(self, roles: tuple[str, ...]) -> _Frame | None:
        """Return the frame of messages with these roles; None if the template changes or drops a mark."""
        marked = [{"role": role, "content": _MARK.format(number)} for number, role in enumerate(roles)]
        try:
            whole = self._rendered(marked)
            answers = [number for number, role in enumerate(roles) if role == ASSISTANT]
            if not answers:
                return None
            first, last = answers[0], answers[-1]
            until_first = self._rendered(marked[:first]) if first else ""
            prompted = self._rendered(marked[:first], prompt=True) if first else ""
            until_last = self._rendered(marked[: last + 1])
        except ConversationError:
            return None
        pieces = _MARKS.split(whole)  # gap, number, gap, number, ..., gap
        if pieces[1::2] != [str(number) for number in range(len(roles))]:
            return None
        gaps = tuple(pieces[0::2])
        prompt = prompted[len(until_first) :] if prompted.startswith(until_first) else ""
        ending = _MARKS.split(until_last)[-1]
        ending = ending.rstrip() or ending
        before = tuple(
            _after_last(prompt, gap) if role == ASSISTANT else 0
            for role, gap in zip(roles, gaps, strict=False)
        )
        after = tuple(
            len(ending) if role == ASSISTANT and gap.startswith(ending) else 0
            for role, gap in zip(roles, gaps[1:], strict=True)
        )
        return _Frame(gaps, before, after)

    def _answers_by_prefix(self, messages: Sequence[Message], contents: list[str], whole: str) -> Any:
        for number, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            before = self._rendered(messages[:number], prompt=True) if number else ""
            through = self._rendered(messages[: number + 1])
            if not (whole.startswith(before) and whole.startswith(through) and len(before) <= len(through)):
                what = "the chat template writes earlier messages differently once later ones follow"
                raise ConversationError(f"{what}, so that the answer in message {number + 1} cannot be found")
            ending = through.rstrip()
            has_mark = not ending.endswith(contents[number].rstrip())
            yield len(before), len(ending) if has_mark else len(through)


def _after_last(prompt: str, gap: str) -> int:
    """Return how many characters of a gap follow the prompt for an answer; 0 if there is no such prompt."""
    place = gap.rfind(prompt) if prompt else -1
    return 0 if place < 0 else len(gap) - place - len(prompt)
