"""The six tokenizer types of FlagScale v0.6.0: each becomes the engine's type that gives the same ids.

v0.6.0's classes are in `megatron/training/tokenizer/tokenizer.py`. What they read besides text, and the token
that they take for the end of a document, is kept or reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

from flagscale.config.engine_args import FlatKey, Unknown
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem

TOKENIZERS: Mapping[str, str] = {
    "AquilaTokenizerFS": "GPT2BPETokenizer",
    "HFTokenizerFS": "HuggingFaceTokenizer",
    "HFTokenizersTokenizerFS": "HuggingFaceTokenizer",
    "Llama3TokenizerFS": "HuggingFaceTokenizer",
    "QwenTokenizerFS": "HuggingFaceTokenizer",
    "Qwen2TokenizerFS": "HuggingFaceTokenizer",
}
_ENDS = {
    "AquilaTokenizerFS": "</s>",
    "HFTokenizersTokenizerFS": "<|endoftext|>",
    "QwenTokenizerFS": "<|extra_204|>",
}
"""What ends a document, where it is not the tokenizer's own end (`eos_token`)."""
_SPECIAL, _SIZE = "special_tokens_file", "vocab_size"


def with_tokenizer(
    flat_keys: Sequence[FlatKey], source_map: SourceMap, problems: list[Problem], notices: list[Problem]
) -> list[FlatKey]:
    """Return the flat keys with a tokenizer of v0.6.0 replaced by the engine's."""
    given = {flat_key.name: flat_key for flat_key in flat_keys}
    kind: Any = given["tokenizer_type"].value if "tokenizer_type" in given else None
    values = {name: flat_key.value for name, flat_key in given.items()}

    def note(name: str, what: str) -> None:
        notices.append(Problem(what, source_map.where(given[name].path)))

    kept: list[FlatKey] = []
    before = len(problems)
    is_old = isinstance(kind, str) and kind in TOKENIZERS
    if kind == "AquilaTokenizerFS" and not values.get("vocab_file") and _has_folder(values):
        kind = "HFTokenizerFS"  # so that files that name a converted folder keep working
    for flat_key in flat_keys:
        name, value = flat_key.name, flat_key.value
        if name == "tokenizer_type" and is_old:
            note(name, f"`{value}` is now `{TOKENIZERS[kind]}`")
            kept += [
                replace(flat_key, value=TOKENIZERS[kind]),
                *_end(flat_key, kind, given, notices, source_map),
            ]
        elif name == "tokenizer_path" and kind == "HFTokenizersTokenizerFS" and isinstance(value, str):
            kept.append(replace(flat_key, value=_folder(flat_key, source_map, problems)))
        elif name == _SPECIAL and Unknown.VALUE in (kind, value):
            kept.append(FlatKey("tokenizer_special_tokens", Unknown.VALUE, flat_key.path))
        elif name == _SPECIAL:
            kept += _special_tokens(flat_key, kind, values, source_map, problems, notices)
        elif name == _SIZE and kind == "Qwen2TokenizerFS" and isinstance(value, int):
            size = _padded(value, values)
            note(name, f"is now `padded_vocab_size: {size}`")
            kept.append(replace(flat_key, name="padded_vocab_size", value=size))
        else:
            kept.append(flat_key)
    if len(problems) > before or values.get(_SPECIAL) is Unknown.VALUE:
        unknown = ("tokenizer_special_tokens", "end_of_document")
        kept = [replace(one, value=Unknown.VALUE) if one.name in unknown else one for one in kept]
    return kept


def _has_folder(values: Mapping[str, Any]) -> bool:
    return bool(values.get("tokenizer_path") or values.get("tokenizer_model"))


def _end(
    of_type: FlatKey, kind: str, given: Mapping[str, FlatKey], notices: list[Problem], source_map: SourceMap
) -> Iterator[FlatKey]:
    """Yield the argument for the end of documents; report an end that cannot be kept, and code not run."""
    where = source_map.where(of_type.path)
    if kind in _ENDS and "end_of_document" not in given:
        yield replace(of_type, name="end_of_document", value=_ENDS[kind])
    if kind == "Qwen2TokenizerFS":
        what = "documents now end with the tokenizer's eos_token, not the first token of `<|extra_204|>`"
        notices.append(Problem(what, where))
    if TOKENIZERS[kind] == "HuggingFaceTokenizer" and "trust_remote_code" not in given:
        what = "code in the tokenizer's folder is not run; if it needs that, set `trust_remote_code: true`"
        notices.append(Problem(what, where))


def _folder(flat_key: FlatKey, source_map: SourceMap, problems: list[Problem]) -> str | Unknown:
    """Return the folder of a tokenizer that was named by its file."""
    path = Path(str(flat_key.value))
    if path.suffix != ".json":
        return str(path)
    if path.name != "tokenizer.json":
        what = f"{path}: a tokenizer is a folder with a file `tokenizer.json`"
        problems.append(
            Problem(what, source_map.where(flat_key.path), "copy the file there; name the folder")
        )
        return Unknown.VALUE
    return str(path.parent)


def _special_tokens(
    flat_key: FlatKey,
    kind: Any,
    values: Mapping[str, Any],
    source_map: SourceMap,
    problems: list[Problem],
    notices: list[Problem],
) -> Iterator[FlatKey]:
    """Yield the tokens of the file as the engine's argument; v0.6.0 read it for one type only."""
    where = source_map.where(flat_key.path)
    listed = values.get("tokenizer_special_tokens")
    if not flat_key.value or kind not in ("AquilaTokenizerFS", "GPT2BPETokenizer"):
        why = f"{kind} does not read it" if flat_key.value else "it has no effect"
        notices.append(Problem(f"dropped because {why}", where))
        return
    path = Path(str(flat_key.value))
    try:
        tokens = path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, ValueError) as error:
        what = f"{path}: no such file" if isinstance(error, FileNotFoundError) else f"{path}: {error}"
        problems.append(Problem(what, where, "one token per line, read on the machine of this command"))
        tokens = None
    if tokens is not None and listed not in (None, tokens):
        what = "give `special_tokens_file` or `tokenizer_special_tokens`, not both"
        problems.append(Problem(what, where))
    if listed is None:
        notices.append(Problem("is now `tokenizer_special_tokens`, the lines of the file", where))
        value: Any = Unknown.VALUE if tokens is None else tokens or None
        yield replace(flat_key, name="tokenizer_special_tokens", value=value)


def _padded(size: int, values: Mapping[str, Any]) -> int:
    """Return a vocabulary's size as the engine rounds it up (defaults: megatron-core 0.19.2)."""
    multiple = 1
    for name, default in (("make_vocab_size_divisible_by", 128), ("tensor_model_parallel_size", 1)):
        value = values.get(name)
        multiple *= value if isinstance(value, int) and value > 0 else default
    return ceil(size / multiple) * multiple
