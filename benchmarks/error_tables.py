"""The tables of errors, as Markdown that is also readable in a terminal."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from benchmarks.error_statistics import Summary, calibrated, grouped, of_tool, uncalibrated
from benchmarks.estimated_rows import LEAST, TRIALS, Scored, is_apart, machines
from benchmarks.measured_rows import FUNCTIONAL_TESTS, Row
from flagscale.planner.intervals import CLASSES, QUANTITIES

_TITLES = {
    "time": "Time of a step",
    "allocated": "Allocated memory",
    "reserved": "Memory reserved by the allocator",
    "device": "Memory in use on the device",
}


def by_class(found: Sequence[Scored]) -> str:
    """Return the table of classes, for each quantity."""

    def groups(quantity: str) -> Iterator[tuple[str, list[Scored]]]:
        judged = [row for row in found if not is_apart(row.row, quantity)]
        for kind in CLASSES:
            yield kind, [row for row in judged if row.row.kind == kind]
        yield "all of these", judged
        apart = [row for row in found if is_apart(row.row, quantity)]
        yield from ((f"apart: {name}", rows) for name, rows in grouped(apart, source_of).items())

    return "\n\n".join(_table("class", quantity, groups(quantity)) for quantity in _present(found))


def by_source(found: Sequence[Scored]) -> str:
    """Return the table of sources, for each quantity; golden rows by their quality."""
    groups = grouped(found, source_of).items()
    return "\n\n".join(_table("source", quantity, groups) for quantity in _present(found))


def source_of(row: Scored) -> str:
    """Return the name of a row's source in the tables."""
    return f"{row.row.source} {row.row.quality}" if row.row.source == FUNCTIONAL_TESTS else row.row.source


def _present(found: Sequence[Scored]) -> list[str]:
    return [one for one in QUANTITIES if any(row.error(one) is not None for row in found)]


def _table(column: str, quantity: str, groups: Iterable[tuple[str, Sequence[Scored]]]) -> str:
    head = [column, *_HEAD, f"*calibrated* {_HEAD[0]}", *_HEAD[1:]]
    lines = []
    for name, rows in groups:
        after = calibrated((row for row in rows if quantity in row.judged), quantity)
        if (plain := uncalibrated(rows, quantity)) is not None:
            lines.append([name, *_cells(plain), *_cells(after)])
    return f"**{_TITLES[quantity]}**\n\n{markdown(head, lines)}"


_HEAD = ("n", "signed", "mean", "median", "95 %", "worst")


def by_machine(found: Sequence[Scored]) -> str:
    """Return the table of machines and software that have rows for a calibration, each with its errors."""
    head = ["source, chip, software", "quantity", "n", "mean", "*calibrated* signed", *_HEAD[2:], ""]
    lines = []
    for machine, rows in sorted(machines(found).items()):
        for quantity in _present(rows):
            usable = [row for row in rows if row.error(quantity) is not None]
            plain, after = uncalibrated(usable, quantity), calibrated(usable, quantity)
            if plain and after:
                note = "" if len(usable) >= LEAST else "not judged"
                name = [_machine(machine), quantity, str(plain.n), _percent(plain.mean)]
                lines.append([*name, *_cells(after)[1:], note])
    return f"**Each machine and software**\n\n{markdown(head, lines)}" if lines else ""


def _machine(machine: tuple[str, str, str]) -> str:
    source, chip, software = machine
    versions = re.sub(r'[{}"]', "", software)
    return f"{source}, {chip}, {versions if len(versions) <= 50 else versions[:47] + '...'}"


def beside_others(found: Sequence[Scored]) -> str:
    """Return the table of other tools, with the planner on the same rows."""
    head = ["tool", "quantity", "class", *_HEAD, "*planner* signed", "mean", "95 %", "worst"]
    lines = []
    for tool in sorted({tool for row in found for tool in row.others}):
        for quantity in QUANTITIES:
            both = [
                row
                for row in found
                if row.error_of(tool, quantity) is not None and row.error(quantity) is not None
            ]
            for kind in (*CLASSES, "all"):
                rows = [row for row in both if kind in ("all", row.row.kind)]
                ours = uncalibrated(rows, quantity)
                if ours and (kind != "all" or len({row.row.kind for row in both}) > 1):
                    cells = [_cells(ours)[number] for number in (1, 2, 4, 5)]
                    lines.append([tool, quantity, kind, *_cells(of_tool(rows, tool, quantity)), *cells])
    return f"**Other tools on the same rows**\n\n{markdown(head, lines)}" if lines else ""


def excluded_table(excluded: Sequence[Row]) -> str:
    """Return the reasons of rows that are not scored, with their numbers."""
    counts = Counter((row.reason, row.source or "unknown") for row in excluded)
    reasons: dict[str, Counter[str]] = {}
    for (reason, source), count in counts.items():
        reasons.setdefault(_short(reason), Counter())[source] += count
    lines = [
        [reason, str(sources.total()), ", ".join(f"{name} {n}" for name, n in sorted(sources.items()))]
        for reason, sources in sorted(reasons.items(), key=lambda item: (-item[1].total(), item[0]))
    ]
    return f"**Not scored**\n\n{markdown(['why', 'n', 'sources'], lines)}" if lines else ""


def _short(reason: str) -> str:
    """Return a reason without the numbers of one row, so that equal reasons are counted together."""
    has_numbers = reason.startswith(("the engine would", "a batch", "the degrees", "the stages"))
    return re.sub(r"\d+", "N", reason) if has_numbers else reason


def row_lines(found: Sequence[Scored], excluded: Sequence[Row]) -> str:
    """Return every row with its estimates and errors, then those that are not scored."""
    head = ["row", "class", "quality", "chip", "quantity", "measured", "estimate", "error", "*calibrated*"]
    lines = []
    for one in found:
        for quantity in one.estimates:
            error, after = one.error(quantity), calibrated([one], quantity)
            if error is not None:
                name = [one.row.id, one.row.kind, one.row.quality, one.row.chip, quantity]
                amounts = [_amount(quantity, of[quantity]) for of in (one.row.measured, one.estimates)]
                shown = f"{_signed(after.signed)} (mean {_percent(after.mean)})" if after else ""
                lines.append([*name, *amounts, _signed(error), shown, _others(one, quantity)])
    left_out = [[row.id or row.place, row.reason] for row in excluded]
    tables = [markdown([*head, "others"], lines)] if lines else []
    return "\n\n".join([*tables, *([markdown(["not scored", "why"], left_out)] if left_out else [])])


def _others(one: Scored, quantity: str) -> str:
    errors = ((tool, one.error_of(tool, quantity)) for tool in sorted(one.others))
    return "; ".join(f"{tool} {_signed(error)}" for tool, error in errors if error is not None)


def _amount(quantity: str, value: float) -> str:
    return f"{value:.4g} s" if quantity == "time" else f"{value / 2**30:.2f} GiB"


def _cells(one: Summary | None) -> list[str]:
    if one is None:
        return [""] * len(_HEAD)
    sizes = [_percent(size) for size in (one.mean, one.median, one.high)]
    return [str(one.n), _signed(one.signed), *sizes, _signed(one.worst)]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if value < 1 else f"{100 * value:.0f}"


def _signed(value: float) -> str:
    return ("+" if value > 0 else "-" if value < 0 else "") + _percent(abs(value))


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table whose columns are aligned."""
    rows = [list(head), *map(list, lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]

    def line(cells: Sequence[str], pad: Callable[[str, int], str] = str.ljust) -> str:
        return "| " + " | ".join(pad(cell, width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(rows[0]), rule, *(line(row) for row in rows[1:])])


ABOUT = f"""Errors in %: estimate / measured - 1. *signed* is their mean; *mean*, *median* and *95 %* are of
their sizes. *calibrated*: two constants of time (a scale and the speed of the host), or one of memory, are
fitted on {TRIALS} rows of one source, chip and software, and scored on its other rows, for up to 20
choices of the {TRIALS} rows; groups of fewer than {LEAST} rows are not judged."""


def about(found: Iterable[Scored], fitted_without: Collection[str], fitted_on: Collection[str]) -> str:
    """Return what the figures mean, and which sources had a part in their own constants, if any.

    Args:
        found: the rows.
        fitted_without: the sources for which there are constants that were fitted without them.
        fitted_on: the sources that the constants for users were fitted on.
    """
    seen = {row.row.source for row in found if "time" in row.estimates} & {*fitted_on} - {*fitted_without}
    if not seen:
        return f"{ABOUT} Times are estimated with\nconstants that were fitted without the source of the row."
    return f"{ABOUT}\n**The constants of time were fitted on the rows of {', '.join(sorted(seen))} too.**"
