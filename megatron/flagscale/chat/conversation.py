"""Messages as text, and the characters of that text that a model learns to write.

An answer is what an assistant's message adds after the prompt for it (`add_generation_prompt`), up to and
including the mark that ends its turn. Where answers stand is read from a rendering with marks in place of the
texts, so each conversation is rendered once. Templates that change texts, or leave some out, are rendered up
to each answer instead.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
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
class RenderedText:
    """The text of a conversation, and its answers as `(first, end)` characters, in order."""

    text: str
    answers: tuple[Span, ...]


@dataclass(frozen=True)
class _Answer:
    """An answer: the places of its first and last text, and the characters before and after them."""

    first: int
    last: int
    before: int
    after: int


@dataclass(frozen=True)
class _Frame:
    """What a template writes around texts: `gaps[n]` before text n, and the last one at the end."""

    gaps: tuple[str, ...]
    answers: tuple[_Answer, ...]

    def filled(self, texts: Sequence[str]) -> RenderedText:
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


class ChatTemplate:
    """A template (from `template_of`) with the tokenizer whose special tokens it writes."""

    def __init__(self, text: str, tokenizer: Any) -> None:
        self.text = text
        self._tokenizer = tokenizer
        self._frames: dict[tuple[Any, ...], _Frame | None] = {}

    def conversation(self, messages: Sequence[Message]) -> RenderedText:
        """Return the text of messages and its answers.

        Raises:
            ConversationError: the template refuses them, or it does not show where the answers are.
        """
        whole = self._rendered(messages)
        texts = [text for message in messages for text in _texts(message["content"])]
        if frame := self._frame(messages):
            for tried in (texts, [text.strip() for text in texts]):
                found = frame.filled(tried)
                if found.text == whole:
                    return found
        return RenderedText(whole, tuple(self._answers_by_prefix(messages, whole)))

    def end_token(self) -> int | None:
        """Return the id of the special token that ends an answer; None if something else does."""
        asked = [{"role": "user", "content": _MARK}, {"role": ASSISTANT, "content": _MARK}]
        try:
            conversation = self.conversation(asked)
        except ConversationError:
            return None
        ending = conversation.text[slice(*conversation.answers[-1])].rpartition(_MARK)[2].strip()
        ids = self._tokenizer(ending, add_special_tokens=False).input_ids
        known = self._tokenizer.added_tokens_decoder
        return ids[0] if len(ids) == 1 and ids[0] in known and known[ids[0]].special else None

    def notices(self) -> Iterator[str]:
        """Yield in what a model that learns from this template answers otherwise than it should."""
        asked: list[Message] = [{"role": "user", "content": "question"}]
        answer = {"role": ASSISTANT, "content": "answer"}
        try:
            prompt = self._rendered(asked, prompt=True)
            whole = self.conversation([*asked, answer])
        except ConversationError:  # it takes no such messages
            return
        if whole.answers and whole.text[slice(*whole.answers[-1])].strip() == "answer":
            yield "the chat template writes no mark after an answer, so the model does not learn to end one"
        if not whole.text.startswith(prompt):
            begun = next(n for n in range(len(prompt)) if not whole.text.startswith(prompt[: n + 1]))
            shown = repr(prompt[begun:]), repr(whole.text[begun : whole.text.rfind("answer")])
            yield "the chat template asks a served model with {}, but trains it with {}".format(*shown)

    def _rendered(self, messages: Sequence[Message], prompt: bool = False) -> str:
        try:
            return rendered(self.text, self._tokenizer, list(messages), add_generation_prompt=prompt)
        except Exception as error:  # jinja2's, or any that an expression in the template raises
            raise ConversationError(f"the chat template refuses it: {first_line(error)}") from error

    def _frame(self, messages: Sequence[Message]) -> _Frame | None:
        """Return what surrounds the texts of such messages; None if the template changes or drops some."""
        form = tuple((message["role"], _form(message["content"])) for message in messages)
        if form not in self._frames:
            try:
                self._frames[form] = self._frame_of(_marked(messages))
            except ConversationError:
                self._frames[form] = None
        return self._frames[form]

    def _frame_of(self, messages: Sequence[Message]) -> _Frame | None:
        counts = [len(_texts(message["content"])) for message in messages]
        own = [number for number, message in enumerate(messages) if message["role"] == ASSISTANT]
        pieces = _MARKS.split(self._rendered(messages))  # gap, number, gap, number, ..., gap
        if pieces[1::2] != [str(number) for number in range(sum(counts))]:
            return None
        if not own or not all(_ends_with_text(messages[number]["content"]) for number in own):
            return None
        gaps = tuple(pieces[0::2])
        ending = _MARKS.split(self._rendered(messages[: own[-1] + 1]))[-1]
        ending = ending.rstrip() or ending
        answers = []
        for number in own:
            first = sum(counts[:number])
            last = first + counts[number] - 1
            after = len(ending) if gaps[last + 1].startswith(ending) else 0
            answers.append(
                _Answer(first, last, _after_last(self._prompts(messages[:number]), gaps[first]), after)
            )
        return _Frame(gaps, tuple(answers))

    def _prompts(self, messages: Sequence[Message]) -> list[str]:
        """Return what can precede an answer: all that follows the last mark, and the prompt for it alone."""
        if not messages:
            return []
        plain, prompted = self._rendered(messages), self._rendered(messages, prompt=True)
        prompt = prompted[len(plain) :] if prompted.startswith(plain) else ""
        return [text for text in (_MARKS.split(prompted)[-1], prompt) if text]

    def _answers_by_prefix(self, messages: Sequence[Message], whole: str) -> Iterator[Span]:
        for number, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            before = self._rendered(messages[:number], prompt=True) if number else ""
            through = self._rendered(messages[: number + 1])
            if not (whole.startswith(before) and whole.startswith(through) and len(before) <= len(through)):
                what = "the chat template writes earlier messages differently once later ones follow"
                raise ConversationError(f"{what}, so that the answer in message {number + 1} cannot be found")
            ending, text = through.rstrip(), "".join(_texts(message["content"])).rstrip()
            has_mark = len(ending) > len(before) and not (text and ending.endswith(text))
            yield len(before), len(ending) if has_mark else len(through)


def _texts(content: Any) -> list[str]:
    """Return the texts of a content."""
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part["type"] == "text"]


def _form(content: Any) -> tuple[str, ...] | None:
    """Return the types of a content's parts; None if it is a text."""
    return None if isinstance(content, str) else tuple(part["type"] for part in content)


def _marked(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with a mark in place of each text."""
    numbers = itertools.count()

    def marked(content: Any) -> Any:
        if isinstance(content, str):
            return _MARK.format(next(numbers))
        return [
            {**part, "text": _MARK.format(next(numbers))} if part["type"] == "text" else part
            for part in content
        ]

    return [{**message, "content": marked(message["content"])} for message in messages]


def _ends_with_text(content: Any) -> bool:
    return isinstance(content, str) or (bool(content) and content[-1]["type"] == "text")


def _after_last(prompts: Sequence[str], gap: str) -> int:
    """Return how many characters of a gap follow the first of these prompts that is in it; 0 if none is."""
    ends = [gap.rfind(prompt) + len(prompt) for prompt in prompts if prompt in gap]
    return len(gap) - ends[0] if ends else 0
