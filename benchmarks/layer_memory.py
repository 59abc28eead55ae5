"""Show what a transformer layer keeps for its backward pass: `python -m benchmarks.layer_memory`.

Measured on meta tensors, which have shapes but no memory. One of the trainer's own layers runs forward as
one rank of a job; what is alive afterwards counts, each storage once, without parameters. Prints a table of
tensors per layer, then the totals. With `--against`, another commit's layers are measured in the same run.
TransformerEngine, which needs CUDA, is given by the planner's formula.

`--write` measures all kinds of layers, and writes the planner's table and the tables of docs/layers.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from benchmarks.layouts import write
from flagscale.checks.degrees import multiple
from flagscale.errors import Problem, UserError, nearest
from flagscale.files import write_atomic
from flagscale.planner.memory.layer_memory import TABLE
from flagscale_testing.layer_memory.cases import LAYERS, Case, Kept, cases_of
from flagscale_testing.layer_memory.report import formula_table, tensors_table, title, totals_table
from flagscale_testing.layer_memory.sides import ROOT, commit_of, measured, tree_of
from flagscale_testing.layer_memory.table import as_json, table
from flagscale_testing.layer_memory.te_case import te_parts

DOCUMENT = ROOT / "docs" / "layers.md"
BEGIN, END = "<!-- kept: begin -->", "<!-- kept: end -->"
SHOWN = ("llama3-70b", "deepseek-v3", "deepseek-v3-moe")
TP, TOKENS = 2, 4096
"""The layers on the page, and the job in which they are measured."""
MOST = 2**22


def main(argv: Sequence[str]) -> int:
    """Measure and print, or write; return the exit code."""
    options = _parser().parse_args(argv)
    models = options.model or ["llama3-70b"]
    if problems := list(_problems(models, options)):
        print(UserError(problems), file=sys.stderr)
        return UserError.exit_code
    if options.write:
        write_atomic(TABLE, as_json(table(measured)))
        write(DOCUMENT, report(SHOWN, TP, TOKENS, None), BEGIN, END)
    else:
        print(report(models, options.tp, options.tokens, options.against))
    return 0


def report(models: Sequence[str], tp: int, tokens: int, against: str | None) -> str:
    """Return the tables of some models' layers."""
    cases = {title(model, case): case for model in models for case in cases_of(model, tp, tokens)}
    sides = _measure([*cases.values()], against)
    totals: dict[str, list[float]] = {}
    texts = []
    for number, (name, case) in enumerate(cases.items()):
        totals[name] = []
        for side, rows in sides.items():
            texts.append(f"### {name}{f' ({side})' if against else ''}\n\n{tensors_table(rows[number])}")
            totals[name].append(sum(row.nbytes for row in rows[number]))
        if case.implementation == "torch":
            by_formula, parts = name.replace("torch", "transformer_engine by formula"), te_parts(case)
            texts.append(f"### {by_formula}\n\n{formula_table(parts)}")
            totals[by_formula] = [sum(parts.values())]
    return "\n\n".join([totals_table(totals, [*sides]), *texts])


def _measure(cases: Sequence[Case], against: str | None) -> dict[str, list[list[Kept]]]:
    """Return what the cases keep with the layers of another commit, if given, and with those of this tree."""
    with ExitStack() as stack:
        trees = {against: stack.enter_context(tree_of(against))} if against else {}
        trees["this tree"] = ROOT
        with ThreadPoolExecutor() as pool:
            return dict(zip(trees, pool.map(lambda tree: measured(cases, tree), trees.values()), strict=True))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", metavar="NAME", help=f"repeatable: {', '.join(LAYERS)}")
    parser.add_argument(
        "--tp", type=int, default=TP, metavar="N", help=f"tensor parallel ranks (default: {TP})"
    )
    parser.add_argument(
        "--tokens", type=int, default=TOKENS, metavar="N", help=f"in the sample (default: {TOKENS})"
    )
    parser.add_argument("--against", metavar="COMMIT", help="measure the layers of this commit too")
    parser.add_argument("--write", action="store_true", help="write the planner's table and docs/layers.md")
    return parser


def _problems(models: Sequence[str], options: argparse.Namespace) -> Iterator[Problem]:
    """Yield everything that is wrong with the arguments."""
    for model in dict.fromkeys(models):
        if model not in LAYERS:
            yield Problem(f"no such model: {model}", "--model", nearest(model, LAYERS))
        elif 0 < options.tp <= MOST:
            for what in _indivisible(model, options.tp):
                yield Problem(f"{model}: {what}", "--tp")
    for name in ("tp", "tokens"):
        if not 1 <= (number := getattr(options, name)) <= MOST:
            yield Problem(f"must be between 1 and {MOST}, not {number}", f"--{name}")
    if options.write and (options.model or options.against or (options.tp, options.tokens) != (TP, TOKENS)):
        yield Problem("it measures everything that the page shows: remove all other options", "--write")
    if min(options.tp, options.tokens) > 0 and options.tokens % options.tp:
        yield Problem(f"{options.tokens} tokens are no multiple of --tp {options.tp}", "--tokens")
    if options.against and not commit_of(options.against):
        yield Problem(f"no such commit: {options.against}", "--against", "see git log --oneline")


def _indivisible(model: str, tp: int) -> Iterator[str]:
    """Yield which sizes of a model cannot be split over the ranks."""
    sizes, why = LAYERS[model], f"tensor_model_parallel_size {tp}"
    split = ("num_attention_heads", "ffn_hidden_size", "moe_shared_expert_intermediate_size", "q_lora_rank")
    for name in split:
        for _, what in multiple(sizes, name, tp, why):
            yield what
    groups = sizes.get("num_query_groups", tp)
    if groups % tp and tp % groups:
        yield f"num_query_groups {groups} and {why} do not divide each other"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
