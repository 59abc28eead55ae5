"""Compare logits of models with pictures with those of transformers: `python -m benchmarks.vision_cases`.

In each layout, every rank loads the same random weights, and the last stage compares the logits of each case.
Prints the table and writes it into docs/multimodal.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.layouts import write
from flagscale_testing.llava_cases import CASES, GRADIENTS, TOLERANCE
from flagscale_testing.ranks.forked import Run, run_all

Differences = tuple[float, float | None]
"""Of the logits, and of the gradients if they are compared."""
DOCUMENT = Path(__file__).parents[1] / "docs" / "multimodal.md"
BEGIN, END = "<!-- cases: begin -->", "<!-- cases: end -->"
LAYOUTS = {
    "1 rank": (1, ""),
    "TP2": (2, "--tp 2"),
    "TP2 SP": (2, "--tp 2 --sp"),
    "PP2": (2, "--pp 2"),
    "TP2 SP PP2": (4, "--tp 2 --sp --pp 2"),
    "CP2": (2, "--cp 2"),
    "TP2 SP CP2": (4, "--tp 2 --sp --cp 2"),
    "PP2 CP2": (4, "--pp 2 --cp 2"),
}
"""Each with its number of ranks, and the arguments of `flagscale_testing.llava_ranks`."""


def differences(folder: Path) -> dict[str, dict[str, Differences]]:
    """Return the differences of each case in each layout; raises `RuntimeError` if a rank failed."""
    program = "flagscale_testing.llava_ranks:main"
    found: dict[str, dict[str, Differences]] = {}
    for layout, (ranks, options) in LAYOUTS.items():
        file = folder / f"{layout}.json"
        run = Run(layout, ranks, (str(file), *options.split()), program)
        if error := run_all([run], folder)[layout].error:
            raise RuntimeError(f"{layout}: {error}")
        found[layout] = json.loads(file.read_text())
    return found


def main() -> int:
    """Print and write the table; return 1 if a difference is too large."""
    with tempfile.TemporaryDirectory() as folder:
        found = differences(Path(folder))
    text = f"{table(found, 0, CASES)}\n\nGradients:\n\n{table(found, 1, GRADIENTS)}"
    print(text)
    write(DOCUMENT, text, BEGIN, END)
    every = [error for of_cases in found.values() for errors in of_cases.values() for error in errors]
    return int(max(error for error in every if error is not None) > TOLERANCE)


def table(found: Mapping[str, Mapping[str, Differences]], which: int, cases: Iterable[str]) -> str:
    """Return the Markdown table of one kind of differences, in the layouts that compare it."""
    layouts = [layout for layout, of_cases in found.items() if of_cases[GRADIENTS[0]][which] is not None]
    lines = [f"| case | model | {' | '.join(layouts)} |", f"|---|---|{'---|' * len(layouts)}"]
    for case in cases:
        errors = " | ".join(f"{found[layout][case][which]:.0e}" for layout in layouts)
        lines.append(f"| {case} | {CASES[case][0]} | {errors} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
