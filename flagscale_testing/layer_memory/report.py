"""What layers keep, as Markdown tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from flagscale_testing.layer_memory.cases import Case, Kept

MIB = 2**20


def tensors_table(rows: Iterable[Kept]) -> str:
    """Return one line per kept tensor; equal tensors of several experts share a line. Ends with the sum."""
    counted: dict[tuple[str, str, str, str], list[int]] = {}
    for row in rows:
        shape = " x ".join(map(str, row.shape)) or "1"
        module = re.sub(r"\.\d+\b", ".*", row.module) or "the layer"
        counted.setdefault((module, row.operation, shape, row.dtype), []).append(row.nbytes)
    lines = ["| module | kept by | shape | dtype | MiB |", "|---|---|---|---|---|"]
    for (module, operation, shape, dtype), sizes in counted.items():
        times = f"{len(sizes)} of " if len(sizes) > 1 else ""
        lines.append(f"| {module} | {operation} | {times}{shape} | {dtype} | {mib(sum(sizes))} |")
    total = sum(sum(sizes) for sizes in counted.values())
    return "\n".join([*lines, f"| **total** | | | | **{mib(total)}** |"])


def totals_table(titles: Sequence[str], sides: dict[str, Sequence[int]]) -> str:
    """Return one line per layer with its total on each side, and the ratio of two sides."""
    ratio = ["ratio"] if len(sides) == 2 else []
    lines = [
        " | ".join(["| layer", *(f"{side}, MiB" for side in sides), *ratio]) + " |",
        "|---" * (1 + len(sides) + len(ratio)) + "|",
    ]
    for title, *totals in zip(titles, *sides.values(), strict=True):
        cells = [title, *map(mib, totals)]
        if ratio:
            cells.append(f"{totals[0] / totals[1]:.2f} x")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def title(model: str, case: Case) -> str:
    """Return a layer's name with its implementation and its job."""
    tp = case.degree("tensor_model")
    parallel = f"TP{tp}{' SP' if case.sequence_parallel else ''}" if tp > 1 else "one rank"
    return f"{model}, {case.implementation}, {parallel}"


def mib(nbytes: int) -> str:
    return f"{nbytes / MIB:,.1f}" if nbytes >= MIB / 20 else f"{nbytes / MIB:.3f}"
