"""Check a run's input files before anything expensive starts: tokenizer, `.bin/.idx` data. Pure file work."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flagscale.errors import Problem, UserError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_TOKEN_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 8, 7: 4, 8: 2}  # by the type code in the header


def check_inputs(args: Any) -> None:
    """Raise `UserError` with every input file that is missing, unreadable or truncated."""
    problems = [*_tokenizer_problems(args)]
    if not args.mock_data:
        for prefix in _data_prefixes(args):
            fault = fault_of_data(prefix)
            if fault:
                problems.append(Problem(fault))
    if problems:
        raise UserError(problems)


def _tokenizer_problems(args: Any) -> Iterator[Problem]:
    model = args.tokenizer_model
    if model is None or args.tokenizer_type in (None, "NullTokenizer"):
        return
    path = Path(model).expanduser()
    # `name` and `organisation/name` may be meant for the Hugging Face hub; everything else is a path.
    might_be_on_hub = (
        args.tokenizer_type == "HuggingFaceTokenizer" and not path.is_absolute() and model.count("/") < 2
    )
    if not path.exists() and not (might_be_on_hub and not model.startswith(".")):
        yield Problem(f"the tokenizer {model} does not exist")
    elif path.is_dir() and not any(
        (path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")
    ):
        yield Problem(f"the folder {model} holds no tokenizer (no tokenizer.json)")


def _data_prefixes(args: Any) -> list[str]:
    """Return the data prefixes of an argument list: every item of the blends that is not a weight."""
    named = (args.data_path, args.train_data_path, args.valid_data_path, args.test_data_path)
    items = [item for blend in named for item in blend or ()]
    return [item for item in dict.fromkeys(items) if not _is_number(item) and "://" not in item]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def fault_of_data(prefix: str) -> str:
    """Return what is wrong with `PREFIX.idx` and `PREFIX.bin`, empty when sizes agree with the index."""
    index, tokens = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    for path in (index, tokens):
        if not path.is_file():
            return f"the data file {path} does not exist"
        if not os.access(path, os.R_OK):
            return f"the data file {path} cannot be read"
    with index.open("rb") as file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            return f"{index} is not an index of tokenized data, or its head is cut off"
        _, version, code, sequences, documents = _HEADER.unpack(header)
        if version != 1 or code not in _TOKEN_SIZES:
            return f"{index} is written in a format that is not known (version {version}, type {code})"
        least = _HEADER.size + sequences * (4 + 8) + documents * 8
        if index.stat().st_size < least:
            return f"{index} is truncated: {index.stat().st_size} bytes, at least {least} expected"
        if not sequences:
            return f"{index} lists no text"
        file.seek(_HEADER.size + (sequences - 1) * 4)
        (length,) = struct.unpack("<i", file.read(4))
        file.seek(_HEADER.size + sequences * 4 + (sequences - 1) * 8)
        (pointer,) = struct.unpack("<q", file.read(8))
    expected = pointer + length * _TOKEN_SIZES[code]
    if tokens.stat().st_size < expected:
        return f"{tokens} is truncated: {tokens.stat().st_size} bytes, {expected} expected by its index"
    return ""
