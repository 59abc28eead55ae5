"""Fit the constants of the time model on half of the rows, and score the others.

`python -m benchmarks.fit_halves` takes about a minute. Groups of rows (same model and layout) stay together.
It prints the mean errors of each half, with constants fitted on the other half and on all rows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import mean

from benchmarks import fit_constants
from benchmarks.error_tables import markdown
from benchmarks.estimate import DATA
from benchmarks.measured_rows import Row, read_rows
from flagscale.planner.time.constants import Constants, constants, constants_table
from flagscale.planner.time.step_time import step_time

SEED = 1


def halves(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return the rows that constants are fitted on, in two halves by group."""
    usable = [
        row
        for row in rows
        if row.source in fit_constants.ENGINE and not row.reason and "time" in row.measured
    ]
    groups = sorted({(row.source, row.group) for row in usable})
    random.Random(SEED).shuffle(groups)
    first = {*groups[::2]}
    return (
        [row for row in usable if (row.source, row.group) in first],
        [row for row in usable if (row.source, row.group) not in first],
    )


def errors(rows: Sequence[Row], values: Constants) -> dict[str, float]:
    """Return the mean size of the errors of each source."""
    found: dict[str, list[float]] = {}
    for row in rows:
        seconds = max(step_time(job, values).seconds for job in row.copies)
        found.setdefault(row.source, []).append(abs(seconds / row.measured["time"] - 1))
    return {source: mean(own) for source, own in sorted(found.items())}


def main() -> None:
    """Print the table of both halves."""
    start = Constants(**{name: one["start"] for name, one in constants_table()["meanings"].items()})
    first, second = halves(read_rows(DATA))
    lines = []
    for name, fitted_on, scored in (("second", first, second), ("first", second, first)):
        held_out = errors(scored, fit_constants.fit(fit_constants.grouped(fitted_on), start))
        for source, error in errors(scored, constants()).items():
            number = sum(row.source == source for row in scored)
            lines.append([name, source, str(number), f"{held_out[source]:.1%}", f"{error:.1%}"])
    print(markdown(["half", "source", "rows", "fitted on the other half", "fitted on all rows"], lines))


if __name__ == "__main__":
    main()
