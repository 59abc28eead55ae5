"""Convert a model of every family there and back: `python -m benchmarks.conversion_table [NAME...]`.

Each small random model is converted from transformers to Megatron, trained for one step at learning rate 0 in
the given layout, and converted back; its logits are compared. Prints the table; without names, also writes it
into docs/conversion.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.layouts import write
from flagscale_testing.conversion import CASES, Outcome, run_chain

DOCUMENT = Path(__file__).parents[1] / "docs" / "conversion.md"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"


def table(outcomes: Mapping[str, Outcome]) -> str:
    """Return the Markdown table of the outcomes."""
    lines = [
        "| family | round trip | training layout | round trip with training | max logit difference "
        "| first loss difference |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in outcomes.items():
        case = CASES[name]
        padded = " (vocabulary padded)" if case.padded else ""
        loss = "" if found.loss is None else f"{found.loss:.1e}{padded}"
        lines.append(
            f"| {name} | {bitwise(found.round_trip)} | {case.layout_name} | {bitwise(found.trained)} "
            f"| {found.logits:.1e} | {loss} |"
        )
    return "\n".join(lines)


def bitwise(equal: bool | None) -> str:
    """Return the cell of a table: whether what came back is equal, bit for bit."""
    return "bitwise" if equal else "**differs**"


def show(text: str, errors: Mapping[str, str]) -> None:
    """Print a table, and what failed, by the name of the model."""
    print(text)
    for name, error in errors.items():
        if error:
            print(f"\n{name}:\n{error}")


def main(names: list[str]) -> int:
    """Run the named cases, or run all and write the table in the document; return 1 if one is not equal."""
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run_chain(names or CASES, Path(folder))
    text = table(outcomes)
    show(text, {name: found.error for name, found in outcomes.items()})
    if not names:
        write(DOCUMENT, text, BEGIN, END)
    return 0 if all(found.round_trip and found.trained for found in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
