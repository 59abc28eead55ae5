"""Train the examples with golden losses: `python -m benchmarks.golden_losses [--write | --document]`.

Without an option, compares each training with its file in tests/golden/losses and returns 1 if one differs.
`--write` writes the files. `--document` measures how much other kernels, layouts and changed computations
change the losses, and writes the tables in docs/recipes.md; it takes a quarter of an hour.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.layouts import write
from flagscale_testing.golden_changes import SAME, WRONG, differences
from flagscale_testing.golden_losses import CASES, FOLDER, TOLERANCE, record, run_of
from flagscale_testing.ranks.forked import run_all
from flagscale_testing.ranks.training import ROOT

DOCUMENT = ROOT / "docs" / "recipes.md"
SAME_BEGIN, SAME_END = "<!-- golden losses, same: begin -->", "<!-- golden losses, same: end -->"
WRONG_BEGIN, WRONG_END = "<!-- golden losses, changed: begin -->", "<!-- golden losses, changed: end -->"
KERNELS: Mapping[str, Mapping[str, str]] = {
    "kernels for AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "kernels without AVX": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
}
"""Variables with which torch, MKL and oneDNN compute as on an older processor."""


def write_files() -> None:
    """Train every case and write its file."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [run_of(name, case, Path(folder)) for name, case in CASES.items()]
        curves = run_all(runs, Path(folder) / "runs")
    for name, case in CASES.items():
        if curves[name].error:
            raise SystemExit(f"{name}: {curves[name].error}")
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{name}.json").write_text(f"{record(case, curves[name].losses)}\n")


def measured(names: Iterable[str]) -> dict[str, float]:
    """Return the differences of the named changes, in this environment."""
    with tempfile.TemporaryDirectory() as folder:
        return differences({**SAME, **WRONG}, names, Path(folder))


def with_kernels(variables: Mapping[str, str]) -> dict[str, float]:
    """Return the difference of every case in a process with other kernels."""
    command = [sys.executable, "-m", "benchmarks.golden_losses", "--json"]
    env = {**os.environ, **variables}
    done = subprocess.run(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def same_table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Return the Markdown table of differences by what is done otherwise, and by case."""
    lines = [f"| | {' | '.join(CASES)} |", f"|---|{'---|' * len(CASES)}"]
    for what, by_case in found.items():
        lines.append(f"| {what} | {' | '.join(f'{by_case[name]:.1e}' for name in CASES)} |")
    return "\n".join(lines)


def wrong_table(found: Mapping[str, float]) -> str:
    """Return the Markdown table of changed computations."""
    lines = ["| change | training | largest difference | noticed |", "|---|---|---|---|"]
    for name, value in found.items():
        lines.append(
            f"| {name} | {WRONG[name].case} | {value:.1e} | {'yes' if value > TOLERANCE else 'no'} |"
        )
    return "\n".join(lines)


def write_document() -> None:
    """Measure every change, and write both tables."""
    found = measured(SAME)
    ways = dict.fromkeys(name.partition(", ")[2] for name in SAME)
    same = {way: {name: found[f"{name}, {way}"] for name in CASES} for way in ways}
    for what, variables in KERNELS.items():
        by_name = with_kernels(variables)
        same[what] = {name: by_name[f"{name}, again"] for name in CASES}
    write(DOCUMENT, same_table(same), SAME_BEGIN, SAME_END)
    write(DOCUMENT, wrong_table(measured(WRONG)), WRONG_BEGIN, WRONG_END)


def main() -> int:
    """Compare, write the files, or write the tables of the document."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--write", action="store_true", help="write the files of losses")
    choice.add_argument("--document", action="store_true", help="write the tables in docs/recipes.md")
    choice.add_argument("--json", action="store_true", help="print the differences as JSON")
    chosen = parser.parse_args()
    if chosen.write:
        write_files()
    elif chosen.document:
        write_document()
    else:
        found = measured(f"{name}, again" for name in CASES)
        print(
            json.dumps(found)
            if chosen.json
            else "\n".join(f"{name}: {one:.1e}" for name, one in found.items())
        )
        return 0 if chosen.json or max(found.values()) <= TOLERANCE else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
