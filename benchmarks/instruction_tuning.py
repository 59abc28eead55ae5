"""Compare instruction tuning with transformers in every layout: `python -m benchmarks.instruction_tuning`.

A small random Llama learns the same conversations for three steps on both sides. Prints the table; without
names, also writes it into docs/instruction_tuning.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.layouts import write
from flagscale_testing.conversations import LENGTH, drawn
from flagscale_testing.ranks.conversations import LAYOUTS, Figures, Outcome, trained

DOCUMENT = Path(__file__).parents[1] / "docs" / "instruction_tuning.md"
BEGIN, END = "<!-- packing: begin -->", "<!-- packing: end -->"


def table(expected: Figures, outcomes: Mapping[str, Outcome], tokens: int) -> str:
    """Return the Markdown table; `tokens` are those of all conversations."""
    lines = [
        "| layout | ranks | samples | fill | largest difference of losses | of gradient norms |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in outcomes.items():
        losses, norms = found.figures.difference(expected)
        fill = tokens / (found.samples * LENGTH)
        row = (name, LAYOUTS[name][0], found.samples, f"{fill:.1%}", f"{losses:.1e}", f"{norms:.1e}")
        lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def main(names: list[str]) -> int:
    """Run the named layouts, or all and write the table in the document; return 1 if one failed."""
    train, valid = drawn(84), drawn(7, seed=2)
    with tempfile.TemporaryDirectory() as folder:
        expected, outcomes = trained(names or LAYOUTS, Path(folder), train, valid)
    if failed := {name: found.error for name, found in outcomes.items() if found.error}:
        print("\n".join(f"{name}: {error}" for name, error in failed.items()))
        return 1
    text = table(expected, outcomes, sum(len(ids) for ids, _ in train))
    print(text)
    if not names:
        write(DOCUMENT, text, BEGIN, END)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
