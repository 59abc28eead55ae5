"""Compare logits of models with pictures with those of transformers: `python -m benchmarks.vision_cases`.

In each layout, every rank loads the same random weights, and the last stage compares the logits of each case.
Prints the table and writes it into docs/multimodal.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.layouts import write
from flagscale_testing.llava_cases import CASES, TOLERANCE
from flagscale_testing.ranks.forked import Run, run_all

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


def differences(folder: Path) -> dict[str, dict[str, float]]:
    """Return the difference of each case in each layout; raises `RuntimeError` if a rank failed."""
    program = "flagscale_testing.llava_ranks:main"
    found = {}
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
    lines = [f"| case | model | {' | '.join(LAYOUTS)} |", f"|---|---|{'---|' * len(LAYOUTS)}"]
    for case, (model, _) in CASES.items():
        lines.append(f"| {case} | {model} | {' | '.join(f'{one[case]:.0e}' for one in found.values())} |")
    print(text := "\n".join(lines))
    write(DOCUMENT, text, BEGIN, END)
    return int(max(max(one.values()) for one in found.values()) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
