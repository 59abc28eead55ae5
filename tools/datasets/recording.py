"""Record a tokenizer in the facts of a pair that another tool or another tokenizer made.

The tokenizer has to give the same ids for the text of some documents, spread over the whole pair.
"""

from dataclasses import asdict
from pathlib import Path

from flagscale.checks import indexed
from flagscale.checks.facts import facts, write_facts
from flagscale.checks.tokenizer import fingerprint
from flagscale.errors import UserError
from megatron.flagscale.tokenizer import around, first_difference, ids_of, open_tokenizer

_DOCUMENTS = 50
_LONGEST = 100_000
"""Tokens; longer documents are not compared."""
_LOST = "\N{REPLACEMENT CHARACTER}"
_SAMPLE = 200
"""Characters."""


def record(prefix: Path, folder: Path, largest_id: int) -> int:
    """Add the tokenizer in `folder` to the facts of a sound pair; return how many documents were compared.

    Raises:
        UserError: the tokenizer gives other ids for one of them, or there is none to compare.
    """
    import numpy

    tokenizer, held = open_tokenizer(folder), indexed.summary(prefix)
    dtype = numpy.dtype(held.dtype).newbyteorder("<")
    tokens = numpy.memmap(indexed.bin_path(prefix), dtype=dtype, mode="r")
    step, compared, sample = max(1, held.documents // _DOCUMENTS), 0, ""
    for document in range(0, held.documents, step):
        begin, end = indexed.document_at(prefix, document)
        if not begin < end <= begin + _LONGEST:
            continue
        stored = tokens[begin:end].tolist()
        text = tokenizer.encoder.decode(stored)
        if _LOST in text:  # tokens that are no whole character: the text cannot give the same ids
            continue
        (made,) = tokenizer.documents([text])
        if made != stored:
            raise UserError(_other_ids(prefix, folder, document, stored, made))
        compared, sample = compared + 1, sample or text[:_SAMPLE]
    if not sample:
        raise UserError(f"{prefix}: no document has text that could be compared with {folder}")
    own = fingerprint(folder)
    if known := facts(prefix):
        known["tokenizers"] = list(dict.fromkeys([*known["tokenizers"], own]))
    else:
        ids = {"largest_id": largest_id, "tokenizers": [own], "vocabulary": tokenizer.vocabulary}
        known = {**asdict(held), **ids, "sample": {"text": sample, "ids": ids_of(folder, sample)}}
    write_facts(prefix, known)
    return compared


def _other_ids(prefix: Path, folder: Path, document: int, stored: list[int], made: list[int]) -> str:
    first = first_difference(stored, made)
    return (
        f"{prefix}: {folder} gives other ids for document {document}, from token {first + 1} on:\n"
        f"    the data: {around(stored, first)}\n    the tokenizer: {around(made, first)}"
    )
