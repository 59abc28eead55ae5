"""Data, tokenizer and vocabulary belong together: token ids that the vocabulary lacks, another tokenizer.

The engine compares none of them. Ids beyond the vocabulary raise an IndexError without tensor parallelism.
With it, the embedding returns zeros for them and the training goes on (megatron-core 0.19.2).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flagscale.checks import tokenizer
from flagscale.checks.blend import named_files
from flagscale.checks.facts import facts
from flagscale.checks.indexed import problems
from flagscale.checks.scans import known_range
from flagscale.errors import UserError, Violation

OF_FILES = "GPT2BPETokenizer"
"""The tokenizer of `vocab_file` and `merge_file`: byte-level BPE, followed by the special tokens."""
EOD, END_OF_DOCUMENT = "<|endoftext|>", "end_of_document"
"""The token that ends a document with `OF_FILES`, and the argument that names another one."""
READ = (
    *("tokenizer_type", "tokenizer_model", "vocab_file", "merge_file", "vocab_size", "special_tokens"),
    END_OF_DOCUMENT,
)
"""The arguments (by dest) that these rules read."""


def vocabulary_of(values: Mapping[str, Any], cwd: Path = Path()) -> int | None:
    """Return how many tokens the tokenizer of a job has; None if that is known only to the engine."""
    match values.get("tokenizer_type"):
        case "NullTokenizer" | "TikTokenizer":
            return values.get("vocab_size")
        case "HuggingFaceTokenizer":
            folder = tokenizer_folder(values, cwd)
            size = tokenizer.vocabulary(folder) if folder else None
            return size and size + len(values.get("special_tokens") or ())
        case "GPT2BPETokenizer":
            ids = _file_ids(values, cwd)
            return len(ids.keys() | set(values.get("special_tokens") or ())) if ids else None
    return None


def tokenizer_of(values: Mapping[str, Any], cwd: Path = Path()) -> str:
    """Return the fingerprint of a job's tokenizer; "" if this host does not have its folder or files."""
    folder = tokenizer_folder(values, cwd)
    if folder is not None:
        return tokenizer.fingerprint(folder)
    paths = [cwd / str(values[name]) for name in ("vocab_file", "merge_file") if values.get(name)]
    if values.get("tokenizer_type") != OF_FILES or len(paths) < 2 or not all(map(os.path.isfile, paths)):
        return ""
    named = [values.get("special_tokens") or [], values.get(END_OF_DOCUMENT) or EOD]
    digest = hashlib.sha256(json.dumps(named).encode())
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def range_of(prefix: Path) -> tuple[int, int] | None:
    """Return the smallest and largest token id of a pair; None if it has to be scanned for them."""
    known = facts(prefix)
    return (0, known["largest_id"]) if known else known_range(prefix)


def unscanned(values: Mapping[str, Any], cwd: Path = Path()) -> list[Path]:
    """Return the prefixes whose ids a start has to read first, or that this host does not have."""
    found = dict.fromkeys(prefix for _, prefix in named_files(values, cwd))
    return [prefix for prefix in found if problems(prefix) or range_of(prefix) is None]


def vocabulary_violations(
    values: Mapping[str, Any], data: Iterable[tuple[str, Path]], cwd: Path = Path()
) -> Iterator[Violation]:
    """Yield each prefix (argument, path) whose tokens the tokenizer of the arguments did not make."""
    try:
        here = tokenizer_of(values, cwd)
        for argument, prefix in data:
            known, found = facts(prefix), range_of(prefix)
            if not found:
                continue
            made_it = bool(known and known["tokenizers"][:1] == [here])
            size = known["vocabulary"] if known and made_it else vocabulary_of(values, cwd)
            if what := id_violation(prefix, found, size):
                yield argument, what
            elif (
                here
                and tokenizer_folder(values, cwd)
                and (what := tokenizer_violation(prefix, str(values["tokenizer_model"]), here))
            ):
                yield "tokenizer_model", what
    except UserError as error:
        yield "tokenizer_model", "; ".join(problem.what for problem in error.problems)


def id_violation(prefix: Path, found: tuple[int, int], vocabulary: int | None) -> str:
    """Return why token ids from smallest to largest do not fit a vocabulary; "" if they do."""
    smallest, largest = found
    if smallest < 0:
        return f"{prefix}.bin: contains the token id {smallest}, but ids start at 0: it does not hold tokens"
    if vocabulary is not None and largest >= vocabulary:
        return (
            f"{prefix}.bin: contains the token id {largest}, but the tokenizer has {vocabulary} tokens (ids "
            f"0 to {vocabulary - 1}): use the tokenizer that made the data, or make the data again"
        )
    return ""


def tokenizer_violation(prefix: Path, folder: str, fingerprint: str) -> str:
    """Return that another tokenizer than that in `folder` made a pair; "" if not, or if that is unknown."""
    known = facts(prefix)
    if known is None or fingerprint in known["tokenizers"]:
        return ""
    return (
        f"{folder}: {prefix} was made with another tokenizer, or with other settings of it; use that one, "
        "make the data again (tools/datasets/preprocess.py), or confirm this one (verify.py --record)"
    )


def file_violations(values: Mapping[str, Any], cwd: Path = Path()) -> Iterator[Violation]:
    """Yield what is wrong with the tokens of a tokenizer of files: special ones, and the end of documents."""
    try:
        ids = _file_ids(values, cwd) if os.path.isfile(cwd / str(values.get("merge_file"))) else {}
    except UserError as error:
        yield "vocab_file", "; ".join(problem.what for problem in error.problems)
        return
    special = values.get("special_tokens") or []
    if not ids:
        return
    if twice := sorted({token for token in special if token in ids or special.count(token) > 1}):
        what = f"`tokenizer_special_tokens` names {', '.join(map(repr, twice))}, which the vocabulary or the"
        yield "special_tokens", f"{what} list already has: they would keep their ids, and shift the others"
    ending = values.get(END_OF_DOCUMENT) or EOD
    if ending not in ids and ending not in special:
        what = f"neither {values['vocab_file']} nor `tokenizer_special_tokens` has the token {ending!r}"
        yield END_OF_DOCUMENT, f"{what}, which ends a document: name another one (`{END_OF_DOCUMENT}`)"


def _file_ids(values: Mapping[str, Any], cwd: Path) -> dict[str, int]:
    """Return the ids in `vocab_file` by token; empty if this host does not have it.

    Raises:
        UserError: it is not a JSON object of consecutive ids.
    """
    path = cwd / str(values.get("vocab_file"))
    if values.get("tokenizer_type") != OF_FILES or not values.get("vocab_file") or not os.path.isfile(path):
        return {}
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(ids, dict) or sorted(map(str, ids.values())) != sorted(map(str, range(len(ids)))):
        raise UserError(f"{path}: not a vocabulary: a JSON object with ids from 0 on by token")
    return ids


def tokenizer_remarks(values: Mapping[str, Any], cwd: Path = Path()) -> Iterator[Violation]:
    """Yield the arguments that the engine ignores with the tokenizer's type."""
    kind = str(values.get("tokenizer_type"))
    for name in _OF_TOKENIZERS if kind in _READ_BY_TYPE else ():
        if values.get(name) and name not in _READ_BY_TYPE[kind]:
            known = None
            if name == "vocab_size":
                with suppress(UserError):
                    known = vocabulary_of(values, cwd)
            if known != values[name]:
                has = f": it has {known} tokens; the model's number is `padded_vocab_size`" if known else ""
                yield name, f"has no effect with `tokenizer_type: {kind}`{has}"


_MODEL = ("tokenizer_model", "special_tokens")
_READ_BY_TYPE: Mapping[str, Sequence[str]] = {
    OF_FILES: ("vocab_file", "merge_file", "special_tokens"),
    "HuggingFaceTokenizer": _MODEL,
    **dict.fromkeys(("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer"), _MODEL),
    "TikTokenizer": (*_MODEL, "vocab_size"),
    "NullTokenizer": ("vocab_size",),
}
"""What the engine reads of `_OF_TOKENIZERS` (`megatron/core/tokenizers/utils/build_tokenizer.py`, 0.19.2)."""
_OF_TOKENIZERS = (*_MODEL, "vocab_file", "merge_file", "vocab_size", "vocab_extra_ids")


def tokenizer_folder(values: Mapping[str, Any], cwd: Path) -> Path | None:
    """Return the folder of a Hugging Face tokenizer on this host; None for a name on a model hub."""
    model = values.get("tokenizer_model")
    is_kind = values.get("tokenizer_type") == "HuggingFaceTokenizer"
    folder = cwd / str(model) if is_kind and model else None
    return folder if folder and os.path.isfile(folder / "tokenizer.json") else None
