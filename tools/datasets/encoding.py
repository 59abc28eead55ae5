"""The tokenizer of prepared data: checked before anything is written, and recorded in the facts of a pair."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flagscale.checks.tokenizer import fingerprint
from flagscale.errors import UserError
from megatron.flagscale.tokenizer import OpenTokenizer, comparison, ids_of
from tools.datasets.documents import Document
from tools.datasets.output import TEXT
from tools.datasets.parts import dtype_of

COMPARED = 8
"""Texts on which the class and the file of a tokenizer are compared."""
_COMPARED_CHARACTERS = 4000
"""Characters of each of them."""
_SAMPLE_CHARACTERS = 200


class TextEncoder:
    """Turns documents into their ids."""

    unit = "documents"

    def __init__(self, tokenizer: OpenTokenizer) -> None:
        self._tokenizer = tokenizer
        self.dtypes = {TEXT: dtype_of(tokenizer.vocabulary)}

    def encode(self, documents: Sequence[Document]) -> Iterable[dict[str, list[int]]]:
        """Return the ids of each document."""
        encoded = self._tokenizer.documents([document.text for document in documents])
        return ({TEXT: ids} for ids in encoded)

    def about(self) -> None:
        """Keep nothing: the pair says all."""


def check_class(folder: Path, texts: Iterable[str]) -> None:
    """Raise UserError if the class of a tokenizer gives these texts other ids than its file."""
    if differs := comparison(folder, "\n".join(text[:_COMPARED_CHARACTERS] for text in texts)):
        raise UserError(differs)


def facts_of(folder: Path, vocabulary: int, text: str) -> dict[str, Any]:
    """Return what a tokenizer adds to the facts of a pair; `text`: the beginning of it is the sample."""
    sample = text[:_SAMPLE_CHARACTERS]
    return {
        "tokenizers": [fingerprint(folder)],
        "vocabulary": vocabulary,
        "sample": {"text": sample, "ids": ids_of(folder, sample)},
    }


def add_tokenizer_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of every tool that encodes text."""
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    parser.add_argument("--threads", type=int, help="threads of the tokenizer (default: all cores)")


def use_threads(arguments: Namespace) -> None:
    """Set the size of the tokenizer's thread pool; call it before the tokenizer is opened."""
    if arguments.threads is not None:
        os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)
