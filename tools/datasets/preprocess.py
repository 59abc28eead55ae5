"""Tokenize text into Megatron's `.bin/.idx`: `preprocess.py --source texts/ --tokenizer t/ --output data/`.

Creates `data/train_text_document` and `data/valid_text_document`, prefixes for Megatron's `--train-data-path`
and `--valid-data-path`. The same command continues a killed run; the final names hold either a complete
pair or nothing that Megatron would open.

Documents are tokenized in parts of a fixed number. Each part is written to a temporary folder and renamed
once complete, so a restart reuses complete parts; `text_document.parts/request.json` records what they are
made from. At the end all parts are merged and renamed, `.idx` last; the facts of each pair are written to
`train_text_document.json` and `valid_text_document.json`, and `text_document.json` records the result.
"""

import os
import shutil
import sys
from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from flagscale.checks import indexed
from flagscale.checks import tokenizer as tokenizer_files
from flagscale.checks.facts import facts, facts_path
from flagscale.errors import UserError
from tools.command import run
from tools.datasets.documents import Source, add_arguments, source_of
from tools.datasets.folders import locked, read_json, refuse_other, write_json
from tools.datasets.output import OutputFolder, Prepared
from tools.datasets.parts import merge, write_parts

VALID_EVERY = 50
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

    Documents 0, n, 2n, ... with n = `valid_every` go to valid (0: none). Raises UserError if the folder was
    made with other settings.
    """
    if valid_every == 1 or valid_every < 0:
        raise UserError(f"--valid-every {valid_every}: must be 2 or more, or 0 for no validation text")
    if documents_per_part < 1:
        raise UserError(f"--documents-per-part {documents_per_part}: must be 1 or more")
    layout = OutputFolder(output)
    fingerprint, tokenizer_fingerprint = source.fingerprint(), tokenizer_files.fingerprint(tokenizer)
    request = {
        "source": fingerprint,
        "tokenizer": tokenizer_fingerprint,
        "valid_every": valid_every,
        "documents_per_part": documents_per_part,
    }
    with locked(output):
        if overwrite:
            layout.discard()
        ready = _up_to_date(layout, request)
        if ready is not None:
            return ready
        layout.parts.mkdir(exist_ok=True)
        write_json(layout.request, request)
        known = write_parts(layout, source, tokenizer, valid_every, documents_per_part)
        if source.fingerprint() != fingerprint:
            raise UserError(f"{source.name}: changed while it was being read; run again with --overwrite")
        splits = merge(layout, {"tokenizers": [tokenizer_fingerprint], **known})
        write_json(
            layout.record,
            {"request": request, "splits": {name: asdict(held) for name, held in splits.items()}},
        )
        shutil.rmtree(layout.parts)
        return Prepared(splits, made_now=True)


def _up_to_date(layout: OutputFolder, request: dict[str, Any]) -> Prepared | None:
    """Return the finished data, or None if there is work to do; raise UserError if it must not be touched."""
    record = read_json(layout.record)
    if record is None:
        unfinished = read_json(layout.request)
        if unfinished is not None:
            if layout.complete_parts():  # otherwise starting with other settings loses nothing
                refuse_other(layout.output, unfinished, request)
        elif strangers := [str(file) for file in layout.files() if file.exists()]:
            raise UserError(
                f"{strangers[0]}: not made by this tool; choose another --output, or --overwrite it"
            )
        return None
    refuse_other(layout.output, record["request"], request)
    splits = {name: indexed.Summary(**held) for name, held in record["splits"].items()}
    prefixes = [layout.prefix(split) for split in splits]
    damaged = [problem for prefix in prefixes for problem in indexed.problems(prefix)]
    damaged += [
        f"{facts_path(prefix)}: not the facts of this pair" for prefix in prefixes if not facts(prefix)
    ]
    if damaged:
        print(*damaged, "remaking the data", sep="\n", file=sys.stderr)
        layout.discard()
        return None
    shutil.rmtree(layout.parts, ignore_errors=True)  # left by a kill after everything was done
    return Prepared(splits, made_now=False)


def main() -> int:
    """Preprocess from the command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_arguments(parser)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
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
    parser.add_argument("--threads", type=int, help="threads of the tokenizer (default: all cores)")
    parser.add_argument("--overwrite", action="store_true", help="replace the contents of the folder")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)  # size of the tokenizer's thread pool
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
