"""What layers keep, as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from flagscale_testing.layer_memory.cases import Case, Kept
from flagscale_testing.layer_memory.terms import module_name

MIB = 2**20


def tensors_table(rows: Iterable[Kept]) -> str:
    """Return one line per kept tensor; equal tensors of one module share a line. Ends with the sum."""
    equal: dict[tuple[str, str, str, str], list[int]] = {}
    for row in rows:
        shape = " x ".join(map(str, row.shape)) or "1"
        equal.setdefault((module_name(row.module), row.operation, shape, row.dtype), []).append(row.nbytes)
    lines = ["| module | kept by | shape | dtype | MiB |", "|---|---|---|---|---|"]
    for (module, operation, shape, dtype), sizes in equal.items():
        count = f"{len(sizes)} of " if len(sizes) > 1 else ""
        lines.append(f"| {module} | {operation} | {count}{shape} | {dtype} | {mib(sum(sizes))} |")
    total = sum(sum(sizes) for sizes in equal.values())
    return "\n".join([*lines, f"| **total** | | | | **{mib(total)}** |"])


def formula_table(parts: Mapping[str, float]) -> str:
    """Return one line per module with its bytes. Ends with the sum."""
    lines = ["| module | MiB |", "|---|---|"]
    lines += [f"| {module} | {mib(nbytes)} |" for module, nbytes in parts.items() if nbytes]
    return "\n".join([*lines, f"| **total** | **{mib(sum(parts.values()))}** |"])


def totals_table(totals: Mapping[str, Sequence[float]], sides: Sequence[str]) -> str:
    """Return one line per layer with its bytes on each side; if there are two sides, also their ratio.

    A layer with one figure, from a formula, has it on all sides.
    """
    ratio = ["ratio"] if len(sides) == 2 else []
    head = ["layer", *(f"{side}, MiB" for side in sides), *ratio]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, figures in totals.items():
        cells = [name, *map(mib, figures)]
        if ratio and len(figures) == 2:
            cells.append(f"{figures[0] / figures[1]:.2f} x")
        lines.append(f"| {' | '.join(cells + [''] * (len(head) - len(cells)))} |")
    return "\n".join(lines)


def title(model: str, case: Case) -> str:
    """Return a layer's name with its implementation and its job."""
    tp = case.degree("tensor_model")
    parallel = f"TP{tp}{' SP' if case.sequence_parallel else ''}" if tp > 1 else "one rank"
    return f"{model}, {case.implementation}, {parallel}"


def mib(nbytes: float) -> str:
    """Return bytes in MiB with as many digits as matter."""
    return f"{nbytes / MIB:,.1f}" if nbytes >= MIB / 20 else f"{nbytes / MIB:.3f}"
