"""Errors of many estimates as a few figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.estimated_rows import Scored


@dataclass(frozen=True)
class Summary:
    """Errors (estimate / measured - 1) of `n` rows; a row with several errors counts as one."""

    n: int
    signed: float
    """Mean."""
    mean: float
    """Of the absolute errors, like the rest."""
    median: float
    high: float
    """95 % of the errors are at most this."""
    worst: float
    """With its sign."""


def summary(rows: Iterable[Sequence[float]]) -> Summary | None:
    """Return the figures of rows, each with its errors; None without any error."""
    weighted = [(error, 1 / len(errors)) for errors in rows if errors for error in errors]
    if not weighted:
        return None
    total = sum(weight for _, weight in weighted)
    sizes = sorted((abs(error), weight) for error, weight in weighted)
    return Summary(
        n=round(total),
        signed=sum(error * weight for error, weight in weighted) / total,
        mean=sum(size * weight for size, weight in sizes) / total,
        median=_quantile(sizes, 0.5),
        high=_quantile(sizes, 0.95),
        worst=max((error for error, _ in weighted), key=abs),
    )


def _quantile(sizes: Sequence[tuple[float, float]], share: float) -> float:
    """Return the smallest size that `share` of the weight does not exceed; `sizes` is in order."""
    wanted = share * sum(weight for _, weight in sizes)
    reached = 0.0
    for size, weight in sizes:
        reached += weight
        if reached >= wanted - 1e-9:
            return size
    return sizes[-1][0]


def uncalibrated(rows: Iterable[Scored], quantity: str) -> Summary | None:
    """Return the figures of the planner's own estimates."""
    return summary([error] for row in rows if (error := row.error(quantity)) is not None)


def calibrated(rows: Iterable[Scored], quantity: str) -> Summary | None:
    """Return the figures after calibrations on other rows of the same machine and software."""
    return summary(row.calibrated.get(quantity, ()) for row in rows)


def of_tool(rows: Iterable[Scored], tool: str, quantity: str) -> Summary | None:
    """Return the figures of another tool."""
    return summary([error] for row in rows if (error := row.error_of(tool, quantity)) is not None)


def grouped(rows: Iterable[Scored], name: Callable[[Scored], str]) -> dict[str, list[Scored]]:
    """Return the rows by a name, in the order of the names."""
    groups: dict[str, list[Scored]] = {}
    for row in rows:
        groups.setdefault(name(row), []).append(row)
    return dict(sorted(groups.items()))
