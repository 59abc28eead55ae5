"""Count conversations by role and by the reason that they were left out. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from flagscale.checks.messages import TOO_LONG, ConversationError

_MOST_NAMED = 3
"""Conversations above --longest that are named per part; mistakes are all named."""


class LeftOut(NamedTuple):
    """One conversation that is left out: its place, the kind of reason, and the reason in words."""

    where: str
    reason: str
    what: str


class Tally:
    """What is known of conversations besides their tokens."""

    def __init__(self) -> None:
        self.turns: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.named: list[LeftOut] = []

    def count(self, roles: Iterable[str]) -> None:
        """Add a conversation by the roles of its messages."""
        self.turns.update(roles)

    def leave_out(self, where: str, error: ConversationError) -> None:
        """Add a conversation that is left out, with its place; too long ones are only counted after some."""
        self.left_out[error.reason] += 1
        if error.reason != TOO_LONG or self.left_out[TOO_LONG] <= _MOST_NAMED:
            self.named.append(LeftOut(where, error.reason, str(error)))

    @property
    def mistaken(self) -> list[LeftOut]:
        """The conversations that are left out without having been asked to, in order."""
        return [one for one in self.named if one.reason != TOO_LONG]

    def as_json(self) -> dict[str, Any]:
        return {"turns": dict(self.turns), "left_out": dict(self.left_out), "named": self.named}


def total(parts: Sequence[Mapping[str, Any]]) -> Tally:
    """Return the sum of tallies that were written with `as_json`."""
    tally = Tally()
    for part in parts:
        tally.turns.update(part["turns"])
        tally.left_out.update(part["left_out"])
        tally.named += [LeftOut(*one) for one in part["named"]]
    return tally
