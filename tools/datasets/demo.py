"""Prepare the data that the demo trains on: `python tools/datasets/demo.py --output data/demo`.

Creates `tokenizer/`, `train_text_document` and `valid_text_document`; a second call reuses them.
"""

import sys
from argparse import ArgumentParser
from pathlib import Path

if not __package__:  # run as a file: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tools.command import run
from tools.datasets import documents, preprocess, train_tokenizer


def main() -> int:
    """Prepare the demo's data from the command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    documents.add_arguments(parser)
    parser.add_argument(
        "--output", type=Path, default=Path("data/demo"), help="folder for the data (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the contents of the folder")
    arguments = parser.parse_args()
    output, overwrite = arguments.output, arguments.overwrite

    source = documents.source_of(arguments)
    tokenizer = output / "tokenizer"
    trained = train_tokenizer.train(source, tokenizer, overwrite=overwrite)
    prepared = preprocess.prepare(source, tokenizer, output, overwrite=overwrite)
    print(f"{output}: {'' if trained or prepared.made_now else 'up to date, '}{prepared}, from {source.name}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
