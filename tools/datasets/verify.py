"""Check Megatron data files: `python tools/datasets/verify.py data/demo/train_text_document`.

Prints the contents of each pair, or what is wrong with it or with the loss masks beside it. The exit code is
0 if all are valid, otherwise 1.
"""

import sys
from argparse import ArgumentParser
from pathlib import Path

if not __package__:  # run as a file: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from flagscale.checks import indexed, tokenizer
from flagscale.checks.facts import facts, facts_path
from flagscale.checks.vocabulary import id_violation, tokenizer_violation
from flagscale.errors import UserError
from megatron.flagscale.id_range import first_sequence_outside, id_range
from tools.command import run
from tools.datasets.masks import masks_of, problems_of_masks
from tools.datasets.recording import record


def id_problem(prefix: Path, ids: tuple[int, int], vocabulary: int | None) -> str:
    """Return which ids of a pair no token of the vocabulary (None: unknown) has, and where; "" if none."""
    what = id_violation(prefix, ids, vocabulary)
    first = first_sequence_outside(prefix, vocabulary or ids[1] + 1) if what else None
    return f"{what} (sequence {first} is the first with such an id)" if what else ""


def main() -> int:
    """Check every prefix on the command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("prefixes", nargs="+", type=Path, metavar="PREFIX", help="path without .bin or .idx")
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer that must have cut the data")
    parser.add_argument(
        "--vocab-size", type=int, help="number of tokens; all ids must be below it (default: the tokenizer's)"
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="if --tokenizer gives the same ids for some documents, write it to the facts of the pair",
    )
    arguments = parser.parse_args()
    if arguments.record and arguments.tokenizer is None:
        raise UserError("--record: has no effect without --tokenizer; name the folder that made the data")
    vocabulary = _vocabulary(arguments.tokenizer, arguments.vocab_size)
    sound = True
    for given in arguments.prefixes:
        prefix = given.with_suffix("") if given.suffix in (".bin", ".idx") else given
        sound &= _verify(prefix, arguments.tokenizer, vocabulary, arguments.record)
    return 0 if sound else 1


def _verify(prefix: Path, folder: Path | None, vocabulary: int | None, with_record: bool) -> bool:
    """Print the contents of a pair, or what is wrong with it; return whether it is valid."""
    found = indexed.problems(prefix, thorough=True)
    if not found:
        ids = id_range(prefix)
        wrong = id_problem(prefix, ids, vocabulary)
        if not wrong and folder:
            wrong = _record(prefix, folder, ids) if with_record else _other_tokenizer(prefix, folder)
        found = [wrong] if wrong else []
        found += problems_of_masks(prefix)
    if found:
        print(*found, sep="\n", file=sys.stderr)
        return False
    held = indexed.summary(prefix)
    tokens = f"{held.tokens:,} tokens of type {held.dtype}, ids {ids[0]} to {ids[1]}"
    print(f"{prefix}: valid, {held.documents:,} documents, {tokens}{masks_of(prefix)}")
    if facts_path(prefix).is_file() and not facts(prefix):
        print(f"{prefix}: {facts_path(prefix).name} does not describe these files: they have changed since")
    elif folder and not facts(prefix):
        print(f"{prefix}: without facts, so only its ids were compared with {folder}; --record compares more")
    return True


def _other_tokenizer(prefix: Path, folder: Path) -> str:
    return tokenizer_violation(prefix, str(folder), tokenizer.fingerprint(folder))


def _record(prefix: Path, folder: Path, ids: tuple[int, int]) -> str:
    """Write the facts of a pair; return why the tokenizer cannot have made it, else ""."""
    try:
        compared = record(prefix, folder, ids[1])
    except UserError as error:
        return "\n".join(problem.what for problem in error.problems)
    print(f"{prefix}: {folder} gives the same ids for {compared} documents; recorded in {facts_path(prefix)}")
    return ""


def _vocabulary(folder: Path | None, size: int | None) -> int | None:
    """Return the number of tokens of a tokenizer, or the given size."""
    if size is not None and size < 1:
        raise UserError(f"--vocab-size {size}: must be 1 or more")
    if folder is None or size is not None:
        return size
    vocabulary = tokenizer.vocabulary(folder)
    if vocabulary is None:
        raise UserError(f"{folder}: its tokenizer.json does not list the tokens; give --vocab-size too")
    return vocabulary


if __name__ == "__main__":
    sys.exit(run(main))
