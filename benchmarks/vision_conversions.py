"""Convert small models with pictures there and back: `python -m benchmarks.vision_conversions [NAME...]`.

Each random model is converted from transformers to Megatron, its logits for a picture among tokens are
compared, it is trained for one step at learning rate 0 in the layout TP2 PP2, and converted back. Prints the
table; without names, also writes it into docs/multimodal.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.conversion_table import bitwise, show
from benchmarks.layouts import write
from flagscale_testing.llava_folders import MODELS, Outcome, run_chain

DOCUMENT = Path(__file__).parents[1] / "docs" / "multimodal.md"
BEGIN, END = "<!-- vision conversions: begin -->", "<!-- vision conversions: end -->"


def table(outcomes: Mapping[str, Outcome]) -> str:
    """Return the Markdown table of the outcomes."""
    lines = [
        "| model | round trip | trained in TP2 PP2 | from the `torch` format | logits differ by |",
        "|---|---|---|---|---|",
    ]
    for name, found in outcomes.items():
        equal = map(bitwise, (found.round_trip, found.trained, found.torch))
        lines.append(f"| {name} | {' | '.join(equal)} | {found.logits:.1e} |")
    return "\n".join(lines)


def main(names: list[str]) -> int:
    """Run the named models, or run all and write the table in the document; return 1 if one is not equal."""
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run_chain(names or MODELS, Path(folder))
    text = table(outcomes)
    show(text, {name: found.error for name, found in outcomes.items()})
    if not names:
        write(DOCUMENT, text, BEGIN, END)
    return 0 if all(one.round_trip and one.trained and one.torch for one in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
