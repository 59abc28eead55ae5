"""Compare the planner's estimates with published measurements: `python -m benchmarks.estimate`.

Prints the errors of memory and time by class and by source, uncalibrated and calibrated, beside those of
other estimators and of the engine's own report, and why rows are not scored. Times are estimated with
constants that were fitted without the source of the row.

`--data` scores another file of the same form (docs/planner.md, section "Errors"). `--write` writes the tables
into docs/planner.md and the intervals into flagscale/planner/error_table.json. `--fit` fits the constants
first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import engine_report, error_tables, fit_constants
from benchmarks.error_intervals import error_table, intervals_table
from benchmarks.estimated_rows import Estimator, Scored, scored, with_published_peak
from benchmarks.layouts import write
from benchmarks.measured_rows import Row, read_rows
from flagscale.errors import Problem, UserError
from flagscale.files import write_atomic
from flagscale.planner.calibration import Calibration
from flagscale.planner.intervals import TABLE
from flagscale.planner.memory.stage_memory import memory
from flagscale.planner.time.constants import constants, constants_table
from flagscale.planner.time.step_time import step_time
from flagscale.streams import quietly

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).with_name("measured.jsonl")
DOCUMENT = ROOT / "docs" / "planner.md"
BEGIN, END = "<!-- errors: begin -->", "<!-- errors: end -->"

PLANNER = Estimator(
    memory=memory,
    seconds=lambda training, source, host: (
        step_time(training, constants(without=source), Calibration(host=host)).seconds
    ),
)


def main(argv: Sequence[str]) -> int:
    """Print the tables; return 2 if the file or one of its rows is wrong."""
    options = _parser().parse_args(argv)
    try:
        if (options.write or options.fit) and options.data != DATA:
            raise UserError("--write and --fit take the measurements of FlagScale, not --data")
        rows = read_rows(options.data)
        if options.fit:
            fit_constants.write(fit_constants.fitted_table(rows))
            for cached in (constants, constants_table):
                cached.cache_clear()
        found, excluded = scored(rows, PLANNER)
        found = with_published_peak(found, PLANNER)
        if not options.skip_report:
            found = with_report(found)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.rows:
        print(error_tables.row_lines(found, excluded))
    else:
        print(text(found, excluded, options.by))
    if options.write:
        table = error_table(found)
        write_atomic(TABLE, json.dumps(table, indent=1) + "\n")
        document = f"{text(found, excluded, None)}\n\n{intervals_table(table)}"
        write(DOCUMENT, document, BEGIN, END)
    return _report_wrong(excluded)


def text(found: Sequence[Scored], excluded: Sequence[Row], by: str | None) -> str:
    """Return all tables, or those by class or by source only."""
    if not found:
        return error_tables.excluded_table(excluded)
    fitted_on = {source for source, _, _ in fit_constants.grouped(read_rows(DATA))}
    parts = [error_tables.about(found, constants_table()["without"], fitted_on)]
    if by != "source":
        parts.append(error_tables.by_class(found))
    if by != "class":
        parts += [error_tables.by_source(found), error_tables.by_machine(found)]
    if by is None:
        parts.append(error_tables.beside_others(found))
    parts.append(error_tables.excluded_table(excluded))
    return "\n\n".join(filter(None, parts))


def with_report(found: Sequence[Scored]) -> list[Scored]:
    """Return the rows with the memory that the engine itself reports, where allocated memory was measured."""
    wanted = [one for one in found if "allocated" in one.row.measured]
    reports = engine_report.reported([one.row for one in wanted]) if wanted else []
    known = {id(one): nbytes for one, nbytes in zip(wanted, reports, strict=True) if nbytes}
    return [
        replace(one, others={**one.others, engine_report.TOOL: {"allocated": known[id(one)]}})
        if id(one) in known
        else one
        for one in found
    ]


def _report_wrong(excluded: Sequence[Row]) -> int:
    """Print a message for each row that is wrong; return the exit code."""
    problems = [Problem(row.reason, row.place) for row in excluded if row.is_wrong]
    if problems:
        print(UserError(problems), file=sys.stderr)
    return UserError.exit_code if problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.estimate", description="errors of the planner on measurements"
    )
    parser.add_argument("--data", type=Path, default=DATA, metavar="FILE.jsonl", help="other measurements")
    parser.add_argument("--by", choices=("class", "source"), help="only these tables")
    parser.add_argument("--rows", action="store_true", help="print every row instead")
    parser.add_argument("--fit", action="store_true", help="fit the constants of the time model first")
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT.name} and {TABLE.name}")
    parser.add_argument(
        "--skip-report", action="store_true", help="leave out the engine's own report, which takes seconds"
    )
    return parser


if __name__ == "__main__":
    sys.exit(quietly(lambda: main(sys.argv[1:])))
