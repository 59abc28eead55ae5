"""One conversation as text that shows which of its tokens are learnt. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tools.datasets.chats.encoding import EncodedChat

_GREY, _PLAIN = "\x1b[90m", "\x1b[0m"
_BEGIN, _END = "\N{MATHEMATICAL LEFT WHITE SQUARE BRACKET}", "\N{MATHEMATICAL RIGHT WHITE SQUARE BRACKET}"
_ESCAPE = {0x1B: "\N{SYMBOL FOR ESCAPE}"}
"""A text cannot give orders to the terminal."""


def shown(chat: EncodedChat, *, colours: bool) -> str:
    """Return the text with what is not learnt in grey; without `colours`, what is learnt between marks."""
    return "".join(_pieces(chat, colours))


def summary(chat: EncodedChat) -> str:
    """Return how many tokens there are, and how they are marked."""
    return f"{len(chat.ids):,} tokens, {int(chat.learnt.sum()):,} of them learnt"


def _pieces(chat: EncodedChat, colours: bool) -> Iterator[str]:
    begun = 0
    for is_learnt, tokens in itertools.groupby(
        range(len(chat.ids)), key=lambda place: bool(chat.learnt[place])
    ):
        end = max(int(chat.offsets[place, 1]) for place in tokens)
        piece = chat.text[begun:end].translate(_ESCAPE)
        begun = max(begun, end)
        if colours:
            yield piece if is_learnt else f"{_GREY}{piece}{_PLAIN}"
        else:
            yield f"{_BEGIN}{piece}{_END}" if is_learnt else piece
    yield chat.text[begun:].translate(_ESCAPE)
