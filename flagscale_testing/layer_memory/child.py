"""Measure cases in a process of its own: JSON on standard input and output (see sides.py)."""

from __future__ import annotations

import dataclasses
import json
import sys

from flagscale_testing.layer_memory.cases import Case


def main() -> None:
    """Read a list of cases, and write for each the list of what it keeps."""
    results, sys.stdout = sys.stdout, sys.stderr  # engines print while they are imported
    from flagscale_testing.layer_memory.layer import measure

    cases = [
        Case(**{**raw, "recompute": tuple(raw["recompute"]), "options": tuple(raw["options"])})
        for raw in json.load(sys.stdin)
    ]
    json.dump([[dataclasses.asdict(row) for row in measure(case)] for case in cases], results)


if __name__ == "__main__":
    main()
