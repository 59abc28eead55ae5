"""Tokenize text into Megatron's `.bin/.idx`: `preprocess.py --source texts/ --tokenizer t/ --output data/`.

Creates `data/train_text_document` and `data/valid_text_document`, prefixes for Megatron's `--train-data-path`
and `--valid-data-path`. The same command continues a killed run; the final names hold either a complete
pair or nothing that Megatron would open.

Documents are tokenized in parts of a fixed number. Each part is written to a temporary folder and renamed
once complete, so a restart reuses complete parts. At the end all parts are merged and renamed, `.idx` last;
the facts of each pair are written to `train_text_document.json` and `valid_text_document.json`.
"""

import itertools
import sys
from argparse import ArgumentParser
from pathlib import Path

if not __package__:  # run as a file: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from flagscale.checks import tokenizer as tokenizer_files
from flagscale.errors import UserError
from megatron.flagscale.tokenizer import open_tokenizer
from tools.command import run
from tools.datasets.documents import Source, add_arguments, skipped_notice, source_of
from tools.datasets.encoding import (
    COMPARED,
    TextEncoder,
    add_tokenizer_arguments,
    check_class,
    facts_of,
    use_threads,
)
from tools.datasets.options import VALID_EVERY, check_numbers
from tools.datasets.output import OutputFolder, Prepared
from tools.datasets.parts import write_parts
from tools.datasets.preparing import Made
from tools.datasets.preparing import prepare as prepare_folder

DOCUMENTS_PER_PART = 10_000


def prepare(
    source: Source,
    tokenizer: Path,
    output: Path,
    *,
    valid_every: int = VALID_EVERY,
    documents_per_part: int = DOCUMENTS_PER_PART,
    overwrite: bool = False,
) -> Prepared:
    """Write `source`, tokenized and split into train and valid, to `output`; continue or reuse earlier work.

    Documents 0, n, 2n, ... with n = `valid_every` go to valid (0: none).

    Raises:
        UserError: the folder was made with other settings; the class of the tokenizer gives the first
            documents other ids than its file.
    """
    check_numbers(valid_every, documents_per_part=documents_per_part)
    layout = OutputFolder(output)
    fingerprint = source.fingerprint()
    request = {
        "source": fingerprint,
        "tokenizer": tokenizer_files.fingerprint(tokenizer),
        "valid_every": valid_every,
        "documents_per_part": documents_per_part,
    }

    def make() -> Made:
        opened = open_tokenizer(tokenizer)
        skipped: list[Path] = []
        documents = source.documents(skipped.append)
        first = list(itertools.islice(documents, COMPARED))
        check_class(tokenizer, [document.text for document in first])
        write_parts(
            layout,
            itertools.chain(first, documents),
            TextEncoder(opened),
            valid_every=valid_every,
            documents_per_part=documents_per_part,
            total=source.size(),
        )
        if skipped:
            print(skipped_notice(skipped), file=sys.stderr)
        known = facts_of(tokenizer, opened.vocabulary, first[0].text)
        if source.fingerprint() != fingerprint:
            raise UserError(f"{source.name}: changed while it was being read; run again with --overwrite")
        return Made(known)

    return prepare_folder(layout, request, make, overwrite=overwrite)


def main() -> int:
    """Preprocess from the command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_arguments(parser)
    add_tokenizer_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder for the data")
    parser.add_argument(
        "--valid-every",
        type=int,
        default=VALID_EVERY,
        help="hold out every n-th document for validation (0: none, default: %(default)s)",
    )
    parser.add_argument(
        "--documents-per-part",
        type=int,
        default=DOCUMENTS_PER_PART,
        help="number of documents per part; a kill costs one part at most (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the contents of the folder")
    arguments = parser.parse_args()
    use_threads(arguments)
    prepared = prepare(
        source_of(arguments),
        arguments.tokenizer,
        arguments.output,
        valid_every=arguments.valid_every,
        documents_per_part=arguments.documents_per_part,
        overwrite=arguments.overwrite,
    )
    print(f"{arguments.output}: {'' if prepared.made_now else 'up to date, '}{prepared}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
