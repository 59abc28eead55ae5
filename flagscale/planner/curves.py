"""Figures measured on a chip over sizes: multiplications, attention and collectives, in seconds.

The tables stand under `measured` in a chip's entry (`tools/profile_chip.py` writes them, chips.py reads
them); sizes and bytes are those of one rank, seconds those of one call while all ranks of the host are busy:

    gemm          {precision: [[m, n, k, seconds], ...]}               [m, k] times [k, n]
    grouped_gemm  {precision: [[groups, m, n, k, seconds], ...]}       m rows for each group
    attention     {precision: [[sequence, heads, width, forward seconds, backward seconds], ...]}
                                                                       causal, one sample
    collectives   {kind: {ranks: [[bytes, seconds], ...]}}             ranks of one host

`bytes` of a collective are those of its larger buffer: what all_reduce reduces, all_gather returns,
reduce_scatter and all_to_all take, and send transfers. Between measured sizes the rate is interpolated, on
logarithmic scales; outside them it is that of the nearest size (of messages: of the bytes that were added).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flagscale.errors import Problem, UserError
from flagscale.frozen import dataclass, field

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")

Point = tuple[float, ...]


@dataclass(frozen=True)
class Table:
    """Logarithms of rates by the logarithms of sizes, which form a lattice; some of its points may lack."""

    rates: Mapping[Point, float]
    axes: Sequence[Sequence[float]]
    """The sizes of each dimension, in order."""

    def rate(self, sizes: Sequence[float]) -> float:
        """Return the rate at some sizes: between the corners of the cell of the lattice around them."""
        at = _logs([max(size, 1.0) for size in sizes])
        ends = [_bracket(axis, value) for axis, value in zip(self.axes, at, strict=True)]
        total = 0.0
        for corner in itertools.product(*ends):
            if weight := math.prod(share for _, share in corner):
                total += weight * self._at(tuple(place for place, _ in corner))
        return math.exp(total)

    def _at(self, corner: Point) -> float:
        """Return the value at a corner; if it was not measured, at the nearest point."""
        if (found := self.rates.get(corner)) is not None:
            return found
        return self.rates[min(self.rates, key=lambda point: math.dist(point, corner))]


@dataclass(frozen=True)
class Curves:
    """The tables of one chip, prepared. Every method returns None where nothing was measured."""

    gemm: Mapping[str, Table] = field(default_factory=dict)
    grouped: Mapping[str, Table] = field(default_factory=dict)
    attention: Mapping[str, tuple[Table, Table]] = field(default_factory=dict)
    """Forward and backward."""
    collectives: Mapping[str, Mapping[int, Sequence[tuple[float, float]]]] = field(default_factory=dict)
    """Bytes and seconds by kind and ranks, in the order of bytes."""

    def gemm_s(self, precision: str, m: float, n: float, k: float) -> float | None:
        """Return the seconds of one product of [m, k] and [k, n]."""
        table = self.gemm.get(precision)
        return None if not table else 2 * m * n * k / table.rate((m, n, k))

    def grouped_s(self, precision: str, groups: float, m: float, n: float, k: float) -> float | None:
        """Return the seconds of one product for each group, of [m, k] and [k, n], in one call."""
        table = self.grouped.get(precision)
        return None if not table else 2 * groups * m * n * k / table.rate((groups, m, n, k))

    def attention_s(
        self, precision: str, sequence: float, heads: float, width: float, is_backward: bool = False
    ) -> float | None:
        """Return the seconds of causal attention of `heads` heads (times samples), one direction."""
        tables = self.attention.get(precision)
        if not tables:
            return None
        flop = attention_flop(sequence, heads, width, is_backward)
        return flop / tables[is_backward].rate((sequence, heads, width))

    def collective_s(self, kind: str, ranks: int, nbytes: float) -> float | None:
        """Return the seconds of one collective among ranks of one host; see the module for `nbytes`.

        For a number of ranks that was not measured: the nearest one, its latency in proportion to log2 of the
        ranks, the rest to the share of the bytes that leaves each rank.
        """
        groups = self.collectives.get(kind)
        if not groups or ranks < 2:
            return None
        known = min(groups, key=lambda one: (abs(math.log(one / ranks)), one))
        seconds, latency = _seconds(groups[known], nbytes), groups[known][0][1]
        if known == ranks or kind == "send":
            return seconds
        moved = (1 - 1 / ranks) / (1 - 1 / known)
        return max(seconds - latency, 0.0) * moved + latency * math.log2(ranks) / math.log2(known)

    def best(self, precision: str) -> float:
        """Return the FLOP/s of the fastest measured product, 0 if none was measured."""
        table = self.gemm.get(precision)
        return math.exp(max(table.rates.values())) if table else 0.0

    def link(self) -> tuple[float, float]:
        """Return bytes per second and latency in seconds of messages between two ranks; 0, 0: unknown."""
        points = self.collectives.get("send", {}).get(2)
        if not points:
            return 0.0, 0.0
        (nbytes, seconds), latency = points[-1], points[0][1]
        return nbytes / max(seconds - latency, seconds / 2), latency


def attention_flop(sequence: float, heads: float, width: float, is_backward: bool = False) -> float:
    """Return the operations of causal attention: two products forward, five backward, half of each."""
    return (5 if is_backward else 2) * sequence**2 * heads * width


def curves_of(name: str, measured: Mapping[str, Any]) -> Curves:
    """Return the curves of one chip's `measured`.

    Raises:
        UserError: a table is not in the form above; names every wrong row.
    """
    problems: list[Problem] = []

    def rows(path: str, given: Any, length: int) -> Iterator[Sequence[float]]:
        if not isinstance(given, list):
            problems.append(Problem(f"`{path}` of chip `{name}` is not a list of rows"))
            return
        for number, row in enumerate(given):
            is_row = isinstance(row, list) and len(row) == length
            if is_row and all(type(one) in (int, float) and 0 < one < math.inf for one in row):
                yield row
            else:
                what = f"`{path}[{number}]` of chip `{name}` is {row!r}, not {length} positive numbers"
                problems.append(Problem(what))

    def tables(key: str) -> Iterator[tuple[str, str, Any]]:
        given = measured.get(key) or {}
        if not isinstance(given, Mapping):
            problems.append(Problem(f"`measured.{key}` of chip `{name}` has no precisions or kinds"))
            return
        for part, table in given.items():
            yield part, f"measured.{key}.{part}", table

    def products(key: str, sizes: int) -> dict[str, Table]:
        return {
            part: _table({_logs(row[:-1]): math.log(2 * math.prod(row[:-1]) / row[-1]) for row in found})
            for part, path, table in tables(key)
            if (found := [*rows(path, table, sizes + 1)])
        }

    attention, collectives = {}, {}
    for part, path, table in tables("attention"):
        if found := [*rows(path, table, 5)]:
            attention[part] = _attention(found, False), _attention(found, True)
    for part, path, groups in tables("collectives"):
        if part not in COLLECTIVES or not isinstance(groups, Mapping):
            problems.append(Problem(f"`{path}` of chip `{name}` is not one of {', '.join(COLLECTIVES)}"))
            continue
        collectives[part] = {
            int(ranks): _without_delays(sorted((row[0], row[1]) for row in found))
            for ranks, table in groups.items()
            if _is_count(ranks) and (found := [*rows(f"{path}.{ranks}", table, 2)])
        }
        problems += [
            Problem(f"`{path}.{ranks}` of chip `{name}`: not a number of ranks, 2 or more")
            for ranks in groups
            if not _is_count(ranks)
        ]
    curves = Curves(products("gemm", 3), products("grouped_gemm", 4), attention, collectives)
    if problems:
        raise UserError(problems)
    return curves


def _table(rates: Mapping[Point, float]) -> Table:
    return Table(rates, [sorted({*places}) for places in zip(*rates, strict=True)])


def _attention(rows: Iterable[Sequence[float]], is_backward: bool) -> Table:
    return _table(
        {
            _logs((sequence, heads, width)): math.log(
                attention_flop(sequence, heads, width, is_backward) / seconds[is_backward]
            )
            for sequence, heads, width, *seconds in rows
        }
    )


def _without_delays(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return points whose seconds never fall: what took longer than more bytes did was disturbed."""
    least = itertools.accumulate((seconds for _, seconds in reversed(points)), min)
    return [(nbytes, seconds) for (nbytes, _), seconds in zip(points, reversed([*least]), strict=True)]


def _is_count(ranks: str) -> bool:
    return ranks.isdecimal() and int(ranks) >= 2


def _logs(sizes: Sequence[float]) -> Point:
    return tuple(math.log(size) for size in sizes)


def _bracket(axis: Sequence[float], value: float) -> tuple[tuple[float, float], ...]:
    """Return the neighbours of a value on an axis, each with its share."""
    value = min(max(value, axis[0]), axis[-1])
    below = max(place for place in axis if place <= value)
    above = min(place for place in axis if place >= value)
    if below == above:
        return ((below, 1.0),)
    share = (value - below) / (above - below)
    return (below, 1 - share), (above, share)


def _seconds(points: Sequence[tuple[float, float]], nbytes: float) -> float:
    """Return the seconds for some bytes: at least those of the smallest message, and beyond the largest as
    much more as the bytes between both took."""
    (least, latency), (most, longest) = points[0], points[-1]
    if nbytes <= least:
        return latency
    if nbytes >= most:
        each = (longest - latency) / (most - least) if longest > latency else longest / most
        return longest + (nbytes - most) * each
    (low, fast), (high, slow) = next(
        pair for pair in itertools.pairwise(points) if pair[0][0] <= nbytes <= pair[1][0]
    )
    share = math.log(nbytes / low) / math.log(high / low)
    return math.exp((1 - share) * math.log(fast) + share * math.log(slow))
