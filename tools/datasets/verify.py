"""Check Megatron data files: `python tools/datasets/verify.py data/demo/train_text_document`.

Prints the contents of each pair, or what is wrong with it. The exit code is 0 if all are valid, otherwise 1.
"""

import sys
from argparse import ArgumentParser
from pathlib import Path

if not __package__:  # run as a file: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from flagscale.checks import indexed
from tools.command import run


def main() -> int:
    """Check every prefix on the command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("prefixes", nargs="+", type=Path, metavar="PREFIX", help="path without .bin or .idx")
    sound = True
    for given in parser.parse_args().prefixes:
        prefix = given.with_suffix("") if given.suffix in (".bin", ".idx") else given
        found = indexed.problems(prefix, thorough=True)
        if found:
            sound = False
            print(*found, sep="\n", file=sys.stderr)
        else:
            held = indexed.summary(prefix)
            print(
                f"{prefix}: valid, {held.documents:,} documents, {held.tokens:,} tokens of type {held.dtype}"
            )
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(run(main))
