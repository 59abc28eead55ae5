"""Mistakes in the records of a source: list them in a file, and refuse the source or leave them out."""

import sys
from collections.abc import Sequence
from pathlib import Path

from flagscale.errors import Problem, UserError
from flagscale.files import write_atomic

_MOST_SHOWN = 20


def report(problems: Sequence[Problem], file: Path, unit: str, *, refuse: bool) -> None:
    """Write the mistakes, one per record, to a file; print how many records are left out.

    `unit` is what the tool calls a record.

    Raises:
        UserError: with the first mistakes, if records with mistakes are to be refused.
    """
    lines = "".join(f"{problem}\n" for problem in problems)
    write_atomic(file, lines.encode(errors="backslashreplace"))
    number = f"{len(problems):,} {unit}(s)"
    if not refuse:
        print(f"{number} left out; see {file}", file=sys.stderr)
        return
    shown = [*problems[:_MOST_SHOWN]]
    if hidden := len(problems) - len(shown):
        shown.append(Problem(f"and {hidden:,} more, all in {file}"))
    how = "fix them and run the same command again, or leave them out with --skip-mistakes"
    raise UserError([*shown, Problem(f"{number} with mistakes; {how}")])
