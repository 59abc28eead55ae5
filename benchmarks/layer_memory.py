"""Show what a transformer layer keeps for its backward pass: `python -m benchmarks.layer_memory`.

Measured on meta tensors, which have shapes but no memory. One of the trainer's own layers runs forward as
one rank of a job; what is alive afterwards counts, each storage once, without parameters. Prints a table of
tensors per layer, then the totals. With `--against`, another commit's layers are measured in the same run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from flagscale.checks.degrees import violations
from flagscale.errors import Problem, UserError, nearest
from flagscale_testing.layer_memory.cases import LAYERS, Case, cases_of
from flagscale_testing.layer_memory.report import tensors_table, title, totals_table
from flagscale_testing.layer_memory.sides import ROOT, commit_of, measured, tree_of

HERE = "this tree"


def main(argv: Sequence[str]) -> int:
    """Measure and print; return the exit code."""
    options = _parser().parse_args(argv)
    models = options.model or ["llama3-70b"]
    if problems := list(_problems(models, options)):
        print(UserError(problems), file=sys.stderr)
        return UserError.exit_code
    cases = {
        title(model, case): case for model in models for case in cases_of(model, options.tp, options.tokens)
    }
    with ExitStack() as stack:
        trees = {HERE: ROOT}
        if options.against:
            trees = {options.against: stack.enter_context(tree_of(options.against)), **trees}
        with ThreadPoolExecutor() as pool:
            sides = dict(
                zip(
                    trees,
                    pool.map(lambda tree: measured([*cases.values()], tree), trees.values()),
                    strict=True,
                )
            )
    for number, name in enumerate(cases):
        for side, rows in sides.items():
            print(f"### {name}: {side}\n\n{tensors_table(rows[number])}\n")
    totals = {
        side: [sum(row.nbytes for row in rows) for rows in all_rows] for side, all_rows in sides.items()
    }
    print(totals_table([*cases], totals))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--model", action="append", metavar="NAME", help=f"{', '.join(LAYERS)}; may be repeated"
    )
    parser.add_argument("--tp", type=int, default=2, metavar="N", help="tensor parallel ranks (default: 2)")
    parser.add_argument(
        "--tokens", type=int, default=4096, metavar="N", help="of the one sample (default: 4096)"
    )
    parser.add_argument("--against", metavar="COMMIT", help="measure the layers of this commit too")
    return parser


def _problems(models: Sequence[str], options: argparse.Namespace) -> Iterator[Problem]:
    """Yield everything that is wrong with the arguments."""
    for model in models:
        if model not in LAYERS:
            yield Problem(f"no such model: {model}", "--model", nearest(model, LAYERS))
    for name in ("tp", "tokens"):
        if getattr(options, name) < 1:
            yield Problem(f"must be at least 1, not {getattr(options, name)}", f"--{name}")
    if options.against and not commit_of(options.against):
        yield Problem(f"no such commit in {ROOT}: {options.against}", "--against", "see: git log --oneline")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
