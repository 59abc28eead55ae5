"""The error tree: a user's mistake gets one short message and no traceback, a bug keeps its traceback."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flagscale.frozen import dataclass


@dataclass(frozen=True)
class Problem:
    """One mistake: what is wrong, where (file and line, key path, host), and how to fix it."""

    what: str
    where: str = ""
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        fix = f"\n    {self.hint}" if self.hint else ""
        return f"{place}{self.what}{fix}"


def messages(problems: Iterable[Problem]) -> list[str]:
    """Return one message per problem; of problems that differ only in their place, one with all places."""
    places: dict[tuple[str, str], dict[str, None]] = {}
    for problem in problems:
        places.setdefault((problem.what, problem.hint), {})[problem.where] = None
    return [_message(what, hint, [*where]) for (what, hint), where in places.items()]


def _message(what: str, hint: str, places: list[str]) -> str:
    if len(places) == 1:
        return str(Problem(what, places[0], hint))
    return "\n    ".join([f"{what} ({len(places)} places)", *filter(None, [hint]), *places])


def short(value: object) -> str:
    """Return a value as text of moderate length."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    except ValueError:
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


Violation = tuple[str, str]
"""A broken rule: (dest of the argument to blame, what is wrong)."""


class FlagScaleError(Exception):
    """An expected failure, reported by its message alone; the command ends with `exit_code`."""

    exit_code = 1


class UserError(FlagScaleError):
    """A configuration or command that cannot be run; carries every mistake found, not only the first."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem] | str, refused: str = "") -> None:
        """`refused`: `cannot estimate` or the like, if nothing is wrong with the configuration."""
        self.refused = refused
        self.problems: tuple[Problem, ...] = (
            (Problem(problems),) if isinstance(problems, str) else tuple(problems)
        )
        self.messages = messages(self.problems)
        super().__init__("\n".join(f"- {message}" for message in self.messages))


class RollBackError(UserError):
    """The ranks start again from the newest complete checkpoint, which does not count as a restart."""

    exit_code = 75
    """Of sysexits.h: try again."""


class HostError(FlagScaleError):
    """One or more hosts failed to do what they were asked; one problem per host."""

    def __init__(self, summary: str, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join([summary, *(f"- {problem}" for problem in problems)]))


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint: the valid name closest to `name`; if none is close, all valid names if they are few.

    Numbers have no spelling: 512 is not what 12 was meant to be.
    """
    names = sorted(set(valid), key=lambda one: (len(one) if one.isdecimal() else 0, one))
    if not name.isdecimal() and (close := closest(name, names)):
        return f"did you mean `{close}`?"
    return f"valid: {', '.join(names)}" if 0 < len(names) <= 40 else ""


def closest(name: str, valid: Iterable[str]) -> str | None:
    """Return the valid name that is close enough to be meant by `name`; None if there is none."""
    import difflib  # imported here, because hosts start many processes at once and never need it

    return next(iter(difflib.get_close_matches(name, sorted(set(valid)), n=1, cutoff=0.6)), None)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message; its type if it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
