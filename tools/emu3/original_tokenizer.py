"""The tokenizer of BAAI's Emu3 (`emu3.tiktoken`, `emu3_vision_tokens.txt`) as one of the package tokenizers.

It gives the same ids as `tokenization_emu3.py` in BAAI's repository does with tiktoken: the same pattern cuts
the text, after the same normalization (NFC), and a piece that is a token is never merged from parts.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from flagscale.checks import emu3_vocabulary as names
from flagscale.errors import Problem, UserError
from flagscale.files import read_regular

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RANKS, VISION_TOKENS = "emu3.tiktoken", "emu3_vision_tokens.txt"
RESERVED = "<|extra_0|>"
"""transformers needs a token that stands for a picture: it takes the id of an unused one, as in transformers'
own conversion (`convert_emu3_weights_to_hf.py`)."""
_FIRST = (names.PAD, "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""`PAT_STR` of BAAI's tokenizer."""
_NAMED = {
    "bos_token": names.BEGIN_OF_TEXT,
    "eos_token": names.END_OF_TEXT,
    "pad_token": names.PAD,
    "image_token": names.IMAGE,
    "boi_token": names.BEGIN_OF_IMAGE,
    "eoi_token": names.END_OF_IMAGE,
    "image_wrapper_token": names.BEGIN_OF_CODES,
    "eof_token": names.END_OF_FRAME,
}
"""The names under which transformers' Emu3Processor looks for tokens."""


def read_ranks(path: Path) -> list[bytes]:
    """Return the tokens of a tiktoken file in the order of their ids.

    Raises:
        UserError: the file is damaged or incomplete: each line holds a token in base 64 and the next number.
    """
    try:
        lines = read_regular(path).splitlines()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    tokens: list[bytes] = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        token, _, rank = line.partition(b" ")
        try:
            tokens.append(base64.b64decode(token, validate=True))
            in_order = int(rank) == len(tokens) - 1
        except (binascii.Error, ValueError):
            in_order = False
        if not in_order:
            shown = repr(line.decode(errors="replace")[:80])
            what = f"{shown} is not a token in base 64 and its number, in order from 0"
            raise UserError([Problem(what, f"{path}:{number}", "download the file again")])
    missing = {bytes([byte]) for byte in range(256)}.difference(tokens)
    if missing or len({*tokens}) < len(tokens):
        what = f"{len(missing)} single bytes are missing" if missing else "it contains tokens twice"
        raise UserError(
            [Problem(f"{what} among its {len(tokens)} tokens", str(path), "download the file again")]
        )
    return tokens


def read_special(path: Path, first: int) -> dict[str, int]:
    """Return the ids of the special tokens from `first` on: BAAI's fixed ones, then those of the file.

    Raises:
        UserError: the file cannot be read, or names a token twice.
    """
    try:
        lines = read_regular(path).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "its text is not UTF-8"
        raise UserError(f"{path}: {why}") from None
    tokens = [*_FIRST, *filter(None, map(str.strip, lines))]
    if len({*tokens}) < len(tokens):
        twice = next(token for number, token in enumerate(tokens) if token in tokens[:number])
        raise UserError([Problem(f"it contains {twice} twice", str(path), "download the file again")])
    return {token: number for number, token in enumerate(tokens, start=first)}


def unlike(special: Mapping[str, int], vocabulary: int, codes: int, ids: Mapping[str, int]) -> Iterator[str]:
    """Yield how the tokens differ from what the model and the vision tokenizer need.

    Args:
        vocabulary: tokens of the language model.
        codes: of the vision tokenizer; each has a token, and the ids of these follow each other.
        ids: those that the language model gives to some tokens.
    """
    total = max(special.values()) + 1
    if total != vocabulary:
        yield f"the tokenizer has {total} tokens, but `vocab_size` of the model is {vocabulary}"
    for token, number in ids.items():
        if special.get(token) != number:
            yield f"{token} is {special.get(token, 'missing')} in the tokenizer, but {number} for the model"
    visual = [token for token in special if token.startswith(names.CODE[:15])]
    if len(visual) != codes:
        yield f"the tokenizer has tokens for {len(visual)} codes, but the vision tokenizer has {codes}"
    elif visual != [names.CODE.format(code) for code in range(codes)]:
        yield f"the tokens of codes are not {names.CODE.format(0)}, {names.CODE.format(1)} and so on"


def vocabulary_map(special: Mapping[str, int]) -> dict[str, int]:
    """Return the special tokens of the converted tokenizer: with the placeholder for a picture."""
    return {names.IMAGE if token == RESERVED else token: number for token, number in special.items()}


def merges_of(tokens: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Return the merges, in order, that build every token from two others.

    tiktoken merges whichever neighbours give the token of the lowest number. By the time that it builds a
    token, only one pair of neighbours is left in it: the one that this procedure leaves of the token alone.
    """
    ranks = {token: number for number, token in enumerate(tokens)}
    merges = []
    for number, token in enumerate(tokens):
        parts = [token[at : at + 1] for at in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(one + other, number) for one, other in pairwise(parts)]
            lowest = min(pairs)
            if lowest >= number:
                break  # never merged from parts; only a piece of text that is the whole token gives it
            at = pairs.index(lowest)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def converted(tokens: Sequence[bytes], special: Mapping[str, int]) -> PreTrainedTokenizerFast:
    """Return the tokenizer with the tokens of `read_ranks` and `read_special`."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()

    def written(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = [(written(one), written(other)) for one, other in merges_of(tokens)]
    vocabulary = {written(token): number for number, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in vocabulary_map(special)]
    )
    ends = ("bos_token", "eos_token", "pad_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={name: token for name, token in _NAMED.items() if name not in ends},
        **{name: _NAMED[name] for name in ends},
    )
