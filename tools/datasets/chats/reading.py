"""Read the records of all files of conversations, and find one of them by its number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flagscale.checks.messages import NOT_JSON, ConversationError
from flagscale.errors import Problem, UserError
from tools.datasets.chats.encoding import Chats, EncodedChat
from tools.datasets.formats import Format
from tools.datasets.records import Record, records


def all_records(files: list[tuple[Path, Format]]) -> Iterator[Record]:
    """Yield the records of all files; the value of one that cannot be read is the error."""
    for file, form in files:
        for one in records(file, form):
            if isinstance(one, Problem):
                yield Record(one.where, ConversationError(NOT_JSON, one.what), 0)
            else:
                yield one


def conversation_at(files: list[tuple[Path, Format]], chats: Chats, number: int) -> tuple[str, EncodedChat]:
    """Return the place of a conversation, counted from 1, and its tokens.

    Raises:
        UserError: there is none, or it would be left out.
    """
    if number < 1:
        raise UserError(f"--view {number}: conversations are counted from 1")
    seen = 0
    for seen, record in enumerate(all_records(files), 1):
        if seen == number:
            return record.where, _encoded(record, chats)
    raise UserError(f"--view {number}: there are only {seen} conversations in the source")


def _encoded(record: Record, chats: Chats) -> EncodedChat:
    try:
        _, text = chats.rendered(record.value)
        (encoded,) = chats.encoded([text])
        if isinstance(encoded, ConversationError):
            raise encoded
    except ConversationError as error:
        raise UserError([Problem(str(error), record.where)]) from None
    return encoded
