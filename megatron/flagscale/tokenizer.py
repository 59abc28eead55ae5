"""Open a tokenizer folder as Megatron and vLLM do, with transformers' `AutoTokenizer`, and encode text fast.

The class named in `tokenizer_config.json` may build another tokenizer than `tokenizer.json` describes, in
silence, and so may the `model_type` of a `config.json` beside it. `comparison` and `beside_model` find this
on a sample of text. `python -m megatron.flagscale.tokenizer FOLDER` prints the comparison for `SAMPLE`.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flagscale.checks.tokenizer import eos_token, tokenizer_class, tokenizer_file
from flagscale.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

SAMPLE = (
    'In 2024, 12 of 345 users wrote: "Don\'t panic!"\n\tdef f(x): return x ** 2  # naïve; 漢字 1234567890.'
)
"""Text of many kinds, for folders without a corpus."""
# Text that contains letters, digits and punctuation, so that any tokenizer has tokens for some of it.
_PROBE = "The answer is 42, a word."
_CLASSES_OF_THE_FILE = ("PreTrainedTokenizerFast", "TokenizersBackend")
_SHOWN = 8  # ids on each side of a difference


@dataclass(frozen=True)
class OpenTokenizer:
    """A tokenizer that encodes whole documents."""

    encoder: "Tokenizer"
    eos: int
    ends_documents: bool
    """Whether its template already appends the end-of-document token."""
    vocabulary: int
    """Number of tokens: the highest id + 1."""

    def documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each document, its template and the end-of-document token included.

        Text that spells a special token does not become that token.
        """
        ending = [] if self.ends_documents else [self.eos]
        return [[*encoding.ids, *ending] for encoding in self.encoder.encode_batch_fast(list(texts))]


def open_tokenizer(folder: Path) -> OpenTokenizer:
    """Open a tokenizer folder; raises UserError if it cannot be opened or has no end-of-document token."""
    opened = by_class(folder)
    ending = eos_token(folder)
    encoder = _plain(opened.backend_tokenizer)
    eos = encoder.token_to_id(ending)
    if eos is None or _by_file(folder).token_to_id(ending) != eos:  # otherwise transformers added it
        raise UserError(f"{tokenizer_file(folder)}: the eos_token {ending!r} is not in its vocabulary")
    probe = encoder.encode(_PROBE)
    ends_documents = probe.ids[-1:] == [eos] and probe.special_tokens_mask[-1] == 1
    return OpenTokenizer(encoder, eos, ends_documents, 1 + max(encoder.get_vocab().values()))


def ids_of(folder: Path, text: str) -> list[int]:
    """Return the ids that `AutoTokenizer` gives for a text, as trainer and server would get them."""
    return list(by_class(folder)(text).input_ids)


def first_difference(ids: Sequence[int], others: Sequence[int]) -> int:
    """Return the place of the first id that differs between two different lists, one of which may go on."""
    return next(place for place, (one, other) in enumerate(zip_longest(ids, others)) if one != other)


def around(ids: Sequence[int], place: int) -> str:
    """Return the ids around a place as text."""
    return " ".join(map(str, ids[max(0, place - 2) : place + _SHOWN]))


def comparison(folder: Path, text: str) -> str | None:
    """Return how the ids of the tokenizer's class differ from those of its file for this text; None if equal.

    Raises UserError if the folder cannot be opened.
    """
    opened, file = by_class(folder), _plain(_by_file(folder))
    ours, theirs = _plain(opened.backend_tokenizer).encode(text), file.encode(text)
    if ours.ids == theirs.ids:
        return None
    first = first_difference(ours.ids, theirs.ids)
    at = min((encoding.offsets[first][0] for encoding in (ours, theirs) if first < len(encoding)), default=0)
    name = type(opened).__name__
    return (
        f"{folder}: the tokenizer's class and its file disagree from token {first + 1} on, "
        f"at {text[max(0, at - 10) : at + 40]!r}:\n"
        f"    {name}: {_around(opened.backend_tokenizer, ours, first)}\n"
        f"    tokenizer.json: {_around(file, theirs, first)}\n"
        f"    Trainer and server use the class. {_ways_to_fix(folder)}"
    )


def beside_model(alone: Path, model: Path) -> str:
    """Return how the ids of a tokenizer differ in a model's folder from those in its own; "" if equal."""
    ids = [ids_of(folder, SAMPLE) for folder in (alone, model)]
    if ids[0] == ids[1]:
        return ""
    first = first_difference(*ids)
    shown = [around(one, first) for one in ids]
    name = type(by_class(model)).__name__
    return (
        f"the tokenizer gives other ids beside this model, where transformers opens it as {name}: "
        f"{shown[1]} instead of {shown[0]} from token {first + 1} on; a model that was trained with the "
        f"ids of {alone} does not understand what a server makes of prompts"
    )


def _ways_to_fix(folder: Path) -> str:
    again = (
        "save the tokenizer again, so that both agree, and prepare the data with it: "
        "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(OTHER_FOLDER)"
    )
    if tokenizer_class(folder) in _CLASSES_OF_THE_FILE:
        return f"The model_type in {folder / 'config.json'} chooses it; {again}"
    config = folder / "tokenizer_config.json"
    return (
        f"To use the ids of the file, set `tokenizer_class` to {_CLASSES_OF_THE_FILE[0]} in {config}; "
        f"to keep those of the class, {again}"
    )


def _around(tokenizer: "Tokenizer", encoding: "Encoding", first: int) -> str:
    """Return the ids around the first difference, and the text that each of them decodes to."""
    ids = encoding.ids[max(0, first - 2) : first + _SHOWN]
    pieces = "|".join(tokenizer.decode([one], skip_special_tokens=False) for one in ids)
    return f"{around(encoding.ids, first)}  ({pieces!r})"


def by_class(folder: Path) -> Any:
    """Return transformers' tokenizer of a folder; neither a network nor code of the folder is used."""
    tokenizer_file(folder)
    from transformers import AutoTokenizer

    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        opened = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the libraries raise nothing narrower
        raise UserError(f"{folder}: transformers cannot open this tokenizer: {error}") from None
    if not getattr(opened, "is_fast", False):
        raise UserError(
            f"{folder}: {type(opened).__name__} has no fast implementation; set `tokenizer_class` to "
            f"PreTrainedTokenizerFast in {folder / 'tokenizer_config.json'}"
        )
    return opened


def _by_file(folder: Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    path = tokenizer_file(folder)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path}: cannot be read as a tokenizer: {error}") from None


def _plain(tokenizer: "Tokenizer") -> "Tokenizer":
    """Return the tokenizer, set to encode whole texts, and special tokens in a text as any other text."""
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()  # transformers encodes without these, even if tokenizer.json sets them
    tokenizer.no_padding()
    return tokenizer


def main() -> None:
    """Print the comparison of the folder on the command line, or why it cannot be opened."""
    try:
        print(comparison(Path(sys.argv[1]), SAMPLE) or "")
    except UserError as error:
        print("; ".join(problem.what for problem in error.problems))


if __name__ == "__main__":
    main()
