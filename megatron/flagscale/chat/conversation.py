"""Messages as text, and the characters of that text that a model learns to write.

An answer is what an assistant's message (or one of another chosen role) adds after the prompt for it
(`add_generation_prompt`), up to and including the mark that ends its turn. Where answers stand is read from a
rendering with marks in place of the texts, so each conversation is rendered once. If a template changes texts
or leaves some out, or a message has more than a text (calls of tools), each answer is found on its own: by a
rendering that differs in this message alone, or else by one that ends with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flagscale.checks.messages import ASSISTANT, NO_PLACE, TEMPLATE, ConversationError, Message
from flagscale.errors import first_line
from megatron.flagscale.chat.frames import (
    MARK,
    MARKS,
    Answer,
    Frame,
    RenderedText,
    Span,
    after_last,
    ends_with_text,
    exchanged,
    form_of,
    is_plain,
    mark_of_turn,
    marked,
    texts_of,
)
from megatron.flagscale.chat.templates import rendered

Tools = Sequence[Mapping[str, Any]]


class ChatTemplate:
    """A template (from `template_of`) with the tokenizer whose special tokens it writes."""

    def __init__(self, text: str, tokenizer: Any) -> None:
        self.text = text
        self._tokenizer = tokenizer
        self._frames: dict[tuple[Any, ...], Frame | None] = {}

    def conversation(
        self, messages: Sequence[Message], *, tools: Tools | None = None, learnt: Sequence[bool] | None = None
    ) -> RenderedText:
        """Return the text of messages and its answers.

        Args:
            tools: what the template is given as `tools`.
            learnt: whether each message is an answer; default: the assistant's are.

        Raises:
            ConversationError: the template refuses them, or it does not show where the answers are.
        """
        if learnt is None:
            learnt = [message["role"] == ASSISTANT for message in messages]
        own = tuple(number for number, is_learnt in enumerate(learnt) if is_learnt)
        whole = self._rendered(messages, tools)
        if tools and whole == self._rendered(messages):
            what = "the chat template does not write `tools`; use one that does, or leave them out"
            raise ConversationError(TEMPLATE, what)
        if not tools and all(map(is_plain, messages)) and (frame := self._frame(messages, own)):
            texts = [text for message in messages for text in texts_of(message["content"])]
            for tried in (texts, [text.strip() for text in texts]):
                found = frame.filled(tried)
                if found.text == whole:
                    return found
        return RenderedText(whole, tuple(self._answers(messages, tools, own, whole)))

    def end_token(self) -> int | None:
        """Return the id of the special token that ends an answer; None if something else does."""
        asked = [{"role": "user", "content": MARK}, {"role": ASSISTANT, "content": MARK}]
        try:
            conversation = self.conversation(asked)
        except ConversationError:
            return None
        ending = conversation.text[slice(*conversation.answers[-1])].rpartition(MARK)[2].strip()
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

    def _rendered(self, messages: Sequence[Message], tools: Tools | None = None, prompt: bool = False) -> str:
        try:
            return rendered(
                self.text,
                self._tokenizer,
                list(messages),
                tools=list(tools) if tools else None,
                add_generation_prompt=prompt,
            )
        except Exception as error:  # jinja2's, or any that an expression in the template raises
            what = f"the chat template refuses it: {first_line(error)}"
            raise ConversationError(TEMPLATE, what) from error

    def _frame(self, messages: Sequence[Message], own: tuple[int, ...]) -> Frame | None:
        """Return what surrounds the texts of such messages; None if the template changes or drops some."""
        form = (own, *((message["role"], form_of(message["content"])) for message in messages))
        if form not in self._frames:
            try:
                self._frames[form] = self._frame_of(marked(messages), own)
            except ConversationError:
                self._frames[form] = None
        return self._frames[form]

    def _frame_of(self, messages: Sequence[Message], own: tuple[int, ...]) -> Frame | None:
        counts = [len(texts_of(message["content"])) for message in messages]
        pieces = MARKS.split(self._rendered(messages))  # gap, number, gap, number, ..., gap
        if pieces[1::2] != [str(number) for number in range(sum(counts))]:
            return None
        if not own or not all(ends_with_text(messages[number]["content"]) for number in own):
            return None
        gaps = tuple(pieces[0::2])
        last_of = {messages[number]["role"]: number for number in own}
        endings = {
            role: mark_of_turn(MARKS.split(self._rendered(messages[: number + 1]))[-1])
            for role, number in last_of.items()
        }
        answers = []
        for number in own:
            first = sum(counts[:number])
            last = first + counts[number] - 1
            ending = endings[messages[number]["role"]]
            after = len(ending) if gaps[last + 1].startswith(ending) else 0
            answers.append(
                Answer(first, last, after_last(self._prompts(messages[:number]), gaps[first]), after)
            )
        return Frame(gaps, tuple(answers))

    def _prompts(self, messages: Sequence[Message], tools: Tools | None = None) -> list[str]:
        """Return what can precede an answer: all that follows the last mark, and the prompt for it alone."""
        if not messages:
            return []
        plain, prompted = self._rendered(messages, tools), self._rendered(messages, tools, prompt=True)
        prompt = prompted[len(plain) :] if prompted.startswith(plain) else ""
        return [text for text in (MARKS.split(prompted)[-1], prompt) if text]

    def _answers(
        self, messages: Sequence[Message], tools: Tools | None, own: tuple[int, ...], whole: str
    ) -> Iterator[Span]:
        """Yield each answer, found on its own."""
        end = 0
        for number in own:
            found = self._by_exchange(messages, tools, number, whole)
            found = found or self._by_prefix(messages, tools, number, whole)
            if found is None or found[0] < end:
                what = "the chat template writes earlier messages differently once later ones follow"
                raise ConversationError(
                    NO_PLACE, f"{what}, so that the answer in message {number + 1} cannot be found"
                )
            yield found
            end = found[1]

    def _by_exchange(
        self, messages: Sequence[Message], tools: Tools | None, number: int, whole: str
    ) -> Span | None:
        """Return the answer by a rendering with a mark in its place; None if that does not show it."""
        before, through = messages[:number], [*messages[:number], exchanged(messages[number])]
        try:
            place = self._place(messages, tools, number, whole)
            if place is None:
                return None
            start, end = place
            ending = mark_of_turn(MARKS.split(self._rendered(through, tools))[-1])
            begin = start
            if before:
                asked = [*before[:-1], exchanged(before[-1])]
                _, earlier = self._place(messages, tools, number - 1, whole) or (0, start)
                if earlier > start:
                    return None
                begin -= after_last(self._prompts(asked, tools), whole[earlier:start])
        except ConversationError:  # the template refuses the mark: it wants a call of a tool there
            return None
        return begin, end + len(ending) if whole.startswith(ending, end) else end

    def _place(
        self, messages: Sequence[Message], tools: Tools | None, number: int, whole: str
    ) -> Span | None:
        """Return the characters that depend on a message's contents; None if they are not in one place."""
        other = [*messages]
        other[number] = exchanged(messages[number])
        before, found, after = self._rendered(other, tools).partition(MARK)
        if not found or not whole.endswith(after):
            return None
        start = len(before) if whole.startswith(before) else _equal(before, whole)
        end = len(whole) - len(after)
        return (start, end) if start <= end else None

    def _by_prefix(
        self, messages: Sequence[Message], tools: Tools | None, number: int, whole: str
    ) -> Span | None:
        """Return the answer by renderings of the messages before and up to it; None if `whole` differs."""
        try:
            before = self._rendered(messages[:number], tools, prompt=True) if number else ""
            through = self._rendered(messages[: number + 1], tools)
        except ConversationError:
            return None
        if not (whole.startswith(before) and whole.startswith(through) and len(before) < len(through)):
            return None
        ending, text = through.rstrip(), "".join(texts_of(messages[number].get("content"))).rstrip()
        has_mark = len(ending) > len(before) and not (text and ending.endswith(text))
        return len(before), len(ending) if has_mark else len(through)


def _equal(one: str, other: str) -> int:
    """Return how many characters at the beginning of two different texts are equal."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
