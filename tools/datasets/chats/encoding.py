"""Turn conversations into the ids of `apply_chat_template`, and into masks of the tokens that are learnt."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flagscale.checks.conversations import Chat, chat_of
from flagscale.checks.messages import ASSISTANT, NO_ANSWER, TEMPLATE, TOO_LONG, ConversationError
from megatron.flagscale.chat.conversation import ChatTemplate
from megatron.flagscale.chat.frames import RenderedText
from megatron.flagscale.chat.templates import takes, text_template_of
from megatron.flagscale.chat.tokens import answer_tokens, filled
from megatron.flagscale.tokenizer import by_class
from tools.datasets.chats.tally import Tally
from tools.datasets.output import LOSS_MASK, TEXT
from tools.datasets.parts import dtype_of
from tools.datasets.records import Record


@dataclass(frozen=True)
class Settings:
    """What decides how a conversation is encoded."""

    chat_template: str | None = None
    """One of ours by name, or a file; None: the tokenizer's."""
    roles: tuple[str, ...] = (ASSISTANT,)
    """The roles whose messages are learnt."""
    longest: int | None = None
    """In tokens; longer conversations are left out."""

    @property
    def numbers(self) -> dict[str, int]:
        """The options whose values must be 1 or more."""
        return {} if self.longest is None else {"longest": self.longest}


@dataclass(frozen=True)
class EncodedChat:
    """A conversation as text and as tokens."""

    text: str
    ids: list[int]
    offsets: np.ndarray
    """int64 `[tokens, 2]`: the first and the end character of each token."""
    learnt: np.ndarray
    """bool `[tokens]`"""


class Chats:
    """A tokenizer with its chat template; it encodes conversations."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        """Open the tokenizer in `folder`.

        Raises:
            UserError: it cannot be opened, or has no chat template that can be used.
        """
        self.settings = settings
        tokenizer = by_class(folder)
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self.vocabulary = 1 + max(self._backend.get_vocab().values())
        texts = [
            text_template_of(tokenizer, settings.chat_template, has_tools=has, option="--chat-template")
            for has in (False, True)
        ]
        self.template, self._with_tools = (ChatTemplate(text, tokenizer) for text in texts)
        self.fingerprint = hashlib.sha256("\0".join(texts).encode()).hexdigest()
        self._takes = {lists: takes(texts[0], tokenizer, lists=lists) for lists in (False, True)}

    def rendered(self, value: Any) -> tuple[Chat, RenderedText]:
        """Return the conversation of a record and its text.

        Raises:
            ConversationError: the record is no conversation to learn from.
        """
        if isinstance(value, ConversationError):  # the place of this record cannot be read
            raise value
        chat = chat_of(value, self.settings.roles)
        chat = replace(chat, messages=tuple(map(self._as_taken, chat.messages)))
        template = self._with_tools if chat.tools else self.template
        made = template.conversation(chat.messages, tools=chat.tools, learnt=chat.learnt)
        _check_calls(chat, made.text)
        return chat, made

    def encoded(self, texts: Sequence[RenderedText]) -> list[EncodedChat | ConversationError]:
        """Return the tokens of each conversation, or why it is left out."""
        encodings = self._backend.encode_batch([one.text for one in texts], add_special_tokens=False)
        return [self._checked(one, encoding) for one, encoding in zip(texts, encodings, strict=True)]

    def _checked(self, one: RenderedText, encoding: Any) -> EncodedChat | ConversationError:
        longest = self.settings.longest
        if longest is not None and len(encoding.ids) > longest:
            return ConversationError(TOO_LONG, f"{len(encoding.ids)} tokens, more than --longest {longest}")
        learnt = answer_tokens(encoding.offsets, one.answers)
        if not learnt.any():
            what = "the chat template writes nothing of its answers, so nothing would be learnt from it"
            return ConversationError(NO_ANSWER, what)
        return EncodedChat(one.text, encoding.ids, filled(encoding.offsets), learnt)

    def _as_taken(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return a message with the kind of content that the template takes, as vLLM gives it."""
        content = message.get("content")
        if isinstance(content, list) and not self._takes[True]:
            return {**message, "content": "\n".join(part["text"] for part in content)}
        if isinstance(content, str) and not self._takes[False]:
            return {**message, "content": [{"type": "text", "text": content}]}
        return message


def _check_calls(chat: Chat, text: str) -> None:
    """Raise ConversationError if a template that knows no tools left out the call of one."""
    for number, message in enumerate(chat.messages, 1):
        for call in message.get("tool_calls") or ():
            name = call.get("function", call)["name"]
            if name not in text:
                what = f"the chat template does not write the call of `{name}` in message {number}"
                raise ConversationError(TEMPLATE, what)


class ChatEncoder:
    """Writes conversations as parts of two pairs: their ids, and which of them are learnt."""

    unit = "conversations"

    def __init__(self, chats: Chats) -> None:
        self._chats = chats
        self.dtypes = {TEXT: dtype_of(chats.vocabulary), LOSS_MASK: "uint8"}
        self._tally = Tally()

    def encode(self, documents: Sequence[Record]) -> Iterable[dict[str, Any] | None]:
        """Return the ids and the mask of each conversation; None, and a note in the tally, if left out."""
        kept: list[tuple[int, Chat, RenderedText]] = []
        made: list[dict[str, Any] | None] = [None] * len(documents)
        for place, record in enumerate(documents):
            try:
                kept.append((place, *self._chats.rendered(record.value)))
            except ConversationError as error:
                self._tally.leave_out(record.where, error)
        encoded = self._chats.encoded([text for *_, text in kept])
        for (place, chat, _), one in zip(kept, encoded, strict=True):
            if isinstance(one, ConversationError):
                self._tally.leave_out(documents[place].where, one)
            else:
                self._tally.count([message["role"] for message in chat.messages])
                made[place] = {TEXT: one.ids, LOSS_MASK: one.learnt.astype(np.uint8)}
        return made

    def about(self) -> dict[str, Any]:
        """Return the tally of the conversations since the last call."""
        tally, self._tally = self._tally, Tally()
        return tally.as_json()
