"""Data, tokenizer and vocabulary belong together: token ids that the vocabulary lacks, another tokenizer.

The engine compares none of them. Ids beyond the vocabulary raise an IndexError without tensor parallelism.
With it, the embedding returns zeros for them and the training goes on (megatron-core 0.19.2).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flagscale.checks import tokenizer
from flagscale.checks.blend import named_files
from flagscale.checks.facts import facts
from flagscale.checks.indexed import problems
from flagscale.checks.scans import known_range
from flagscale.errors import UserError, Violation

READ = ("tokenizer_type", "tokenizer_model", "vocab_size", "special_tokens")
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
    return None


def tokenizer_of(values: Mapping[str, Any], cwd: Path = Path()) -> str:
    """Return the fingerprint of a job's tokenizer; "" if this host does not have its folder."""
    folder = tokenizer_folder(values, cwd)
    return tokenizer.fingerprint(folder) if folder else ""


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
            elif here and (what := tokenizer_violation(prefix, str(values["tokenizer_model"]), here)):
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


def tokenizer_folder(values: Mapping[str, Any], cwd: Path) -> Path | None:
    """Return the folder of a Hugging Face tokenizer on this host; None for a name on a model hub."""
    model = values.get("tokenizer_model")
    is_kind = values.get("tokenizer_type") == "HuggingFaceTokenizer"
    folder = cwd / str(model) if is_kind and model else None
    return folder if folder and os.path.isfile(folder / "tokenizer.json") else None
