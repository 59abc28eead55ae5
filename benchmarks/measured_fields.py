"""Typed access to one measured row, which may lack anything or hold anything."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MOST = 2**26
"""No size of a job is larger; a slip of the finger must not cost the machine's memory."""
MOST_PARTS = 2**10
"""Of layers, stages, chunks and experts per job: the planner has a value for each."""


class Unusable(Exception):
    """A row that cannot be estimated: the reason, and whether the row itself is wrong."""

    def __init__(self, reason: str, *, is_wrong: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_wrong = is_wrong


def failure(what: str, error: Exception) -> str:
    """Return the reason of a row for which our own code failed, with the place in the code."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
    return f"{what}: {type(error).__name__}: {error} ({place})"


@dataclass(frozen=True)
class Fields:
    """A mapping of the row with the path to it; a value of a wrong type raises `Unusable`."""

    values: Mapping[str, Any]
    path: str = ""

    def at(self, name: str) -> Fields:
        """Return the mapping below a key; an empty one if it is missing or null."""
        found = self.values.get(name)
        if found is None:
            found = {}
        if not isinstance(found, Mapping):
            raise self._wrong(name, "an object")
        return Fields(found, self._place(name))

    def text(self, name: str, default: str = "") -> str:
        """Return the text of a key; `default` if it is missing or null."""
        found = self.values.get(name)
        if found is None:
            return default
        if not isinstance(found, str):
            raise self._wrong(name, "text")
        return found

    def whole(self, name: str, default: int | None = None, least: int = 1, most: int = MOST) -> int:
        """Return a whole number from `least` to `most`; a missing one without a default was not published."""
        found = self.values.get(name)
        if found is None:
            if default is None:
                raise Unusable(f"not published: {self._place(name)}")
            return default
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        if isinstance(found, bool) or not isinstance(found, int) or found < least:
            raise self._wrong(name, f"a whole number of at least {least}")
        if found > most:
            raise self._wrong(name, f"at most {most}")
        return found

    def positive(self, name: str) -> float | None:
        """Return a positive number; None if it is missing or null."""
        found = self.values.get(name)
        if found is None:
            return None
        is_number = isinstance(found, int | float) and not isinstance(found, bool)
        if not is_number or not math.isfinite(found) or found <= 0:
            raise self._wrong(name, "a positive number")
        return float(found)

    def truth(self, name: str) -> bool:
        """Return whether a key is true; false if it is missing or null."""
        found = self.values.get(name)
        if found is not None and not isinstance(found, bool):
            raise self._wrong(name, "true or false")
        return bool(found)

    def wholes(self, name: str) -> list[int]:
        """Return a list of whole numbers; empty if it is missing or null."""
        found = self.values.get(name) or []
        if not isinstance(found, list) or any(type(one) is not int or one < 0 for one in found):
            raise self._wrong(name, "a list of whole numbers")
        return found

    def _place(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def _wrong(self, name: str, wanted: str) -> Unusable:
        text = repr(self.values[name])
        shown = text if len(text) <= 40 else f"{text[:37]}..."
        return Unusable(f"{self._place(name)} must be {wanted}, not {shown}", is_wrong=True)


@dataclass
class Assumed:
    """What a row does not say and is assumed for it, for the quantities that do not depend on it much."""

    facts: list[str] = field(default_factory=list)
    is_memory_known: bool = True
    """Whether nothing that decides about memory was assumed."""

    def add(self, fact: str, *, decides_memory: bool = True) -> None:
        self.facts.append(fact)
        self.is_memory_known = self.is_memory_known and not decides_memory
