"""Check the data (`.bin/.idx`) and the tokenizer that Megatron's arguments name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flagscale.checks import blend, blend_rules, picture_data, vocabulary
from flagscale.checks.blend import named_files
from flagscale.checks.blend_rules import blend_violations, list_violations, size_violations
from flagscale.checks.indexed import bin_path, problems
from flagscale.checks.loss_masks import separate_remarks, separate_violations
from flagscale.checks.mask_files import NO_PACKING, SEPARATE
from flagscale.checks.model_folder import folder_violations, is_path
from flagscale.checks.picture_data import picture_data_violations, picture_remarks
from flagscale.checks.picture_prompts import PictureBatch, picture_problems
from flagscale.checks.pictures import has_pictures
from flagscale.checks.prompts import read_prompts
from flagscale.checks.sft import conversation_remarks, conversation_violations, is_instruction_tuning
from flagscale.errors import Violation

_TOKENIZER_FILES = {vocabulary.OF_FILES: ("vocab_file", "merge_file")}
_TOKENIZER_JSON = ("tokenizer.json", "tokenizer_config.json")
_TOKENIZERS_WITH_MODEL = {
    "HuggingFaceTokenizer": "folder",
    **dict.fromkeys(
        ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer", "TikTokenizer"), "file"
    ),
}


_MUCH = 10**9
GUIDANCE = "guidance"
"""A key of a job's inputs: the keys of guidance that apply to all lines of its prompts file."""
HAS_OWN_DATA = "has_own_data"
"""A key of a job's inputs: its program has data of its own, so that the arguments need not name any."""


def inputs_of(values: Mapping[str, Any], *, has_own_data: bool = False) -> dict[str, Any]:
    """Return the arguments (by dest) that `data_violations` reads."""
    if has_pictures(values):
        return {name: values.get(name) for name in (*picture_data.READ, *vocabulary.READ)}
    names = {*blend.NAMES, *blend_rules.READ, *vocabulary.READ, NO_PACKING, SEPARATE}
    inputs = {name: values[name] for name in sorted(names) if values.get(name) is not None}
    return {**inputs, HAS_OWN_DATA: True} if has_own_data else inputs


def input_violations(inputs: Mapping[str, Any], cwd: Path = Path()) -> Iterator[Violation]:
    """Yield every violation in the inputs of a job (`Job.inputs`): models, or data and tokenizer."""
    if "models" in inputs:
        for values in inputs["models"]:
            yield from folder_violations(values, cwd)
        if file := inputs.get("prompts_file"):
            for wrong in read_prompts(cwd / file, inputs.get(GUIDANCE))[1]:
                yield "prompts_file", wrong
        if "pictures" in inputs:
            batch = PictureBatch(**inputs["pictures"])
            for wrong in picture_problems(batch, cwd / file if file else None):
                yield "pictures", wrong
    elif inputs:
        yield from data_violations(inputs, cwd, has_own_data=HAS_OWN_DATA in inputs)


def data_violations(
    values: Mapping[str, Any], cwd: Path = Path(), *, has_own_data: bool = False
) -> Iterator[Violation]:
    """Yield every violation in the data and tokenizer that arguments (by dest) name, relative to `cwd`.

    A program with its own data need not be given any; the files that its arguments do name must exist. This
    is not meant for instruction tuning, whose data is named as that of `train_gpt`.
    """
    if has_pictures(values):
        yield from picture_data_violations(values, cwd)
    else:
        yield from _data_violations(values, cwd, has_own_data and not is_instruction_tuning(values))
    yield from _tokenizer_violations(values, cwd)


def data_remarks(values: Mapping[str, Any], cwd: Path = Path()) -> Iterator[Violation]:
    """Yield the data whose token ids have to be read before the start, if that takes a while, what the
    tokenizer ignores, and how many samples conversations make."""
    yield from vocabulary.tokenizer_remarks(values, cwd)
    if has_pictures(values):
        yield from picture_remarks(values)
    yield from separate_remarks(values, cwd)
    if is_instruction_tuning(values):
        yield from conversation_remarks(values, cwd)
    for name, prefix in named_files(values, cwd):
        if not problems(prefix) and vocabulary.range_of(prefix) is None:
            size = bin_path(prefix).stat().st_size
            if size >= _MUCH:
                what = (
                    f"{prefix} has no facts beside it: its {size / 1e9:.1f} GB are read once before the start"
                )
                yield name, what


def _data_violations(values: Mapping[str, Any], cwd: Path, has_own_data: bool) -> Iterator[Violation]:
    given = [name for name in blend.NAMES if values.get(name)]
    if values.get("mock_data"):
        for name in given:
            yield name, f"give `mock_data` or `{name}`, not both"
    elif not given:
        if not has_own_data:
            yield "data_path", "no data: give `data_path` (a prefix of .bin/.idx files) or `mock_data: true`"
    else:
        wrong = list(list_violations(values, cwd))
        if not has_own_data:
            wrong += blend_violations(values, cwd)
        sound = []
        for name, prefix in named_files(values, cwd):
            found = [(name, what) for what in problems(prefix)]
            wrong += found
            if not found:
                sound.append((name, prefix))
        mask_rules = conversation_violations if is_instruction_tuning(values) else separate_violations
        wrong += mask_rules(values, cwd)
        yield from wrong
        yield from vocabulary.vocabulary_violations(values, sound, cwd)
        if not wrong and not has_own_data:
            yield from size_violations(values, cwd)


def _tokenizer_violations(values: Mapping[str, Any], cwd: Path) -> Iterator[Violation]:
    kind = values.get("tokenizer_type")
    if kind == "NullTokenizer" and not values.get("vocab_size"):
        yield "vocab_size", "NullTokenizer needs `vocab_size`"
    for name in _TOKENIZER_FILES.get(str(kind), ()):
        if not values.get(name) or not os.path.isfile(cwd / values[name]):
            path = values.get(name)
            yield name, f"{kind} needs `{name}`{f': {path}: no such file' if path else ''}"
    yield from vocabulary.file_violations(values, cwd)
    if kind in _TOKENIZERS_WITH_MODEL:
        model = values.get("tokenizer_model")
        if not model:
            yield "tokenizer_model", f"{kind} needs `tokenizer_model`: its {_TOKENIZERS_WITH_MODEL[kind]}"
        elif model.startswith("~"):
            yield "tokenizer_model", f"{model}: write the full path: the engine does not expand `~`"
        elif is_path(model) and not os.path.exists(cwd / model):
            yield "tokenizer_model", f"{model}: no such tokenizer"
        elif kind != "HuggingFaceTokenizer" and os.path.isdir(cwd / model):
            yield "tokenizer_model", f"{model} is a folder: {kind} reads one file: name that"
        elif (
            kind == "HuggingFaceTokenizer"
            and os.path.isdir(cwd / model)
            and not _holds_tokenizer(cwd / model)
        ):
            yield "tokenizer_model", f"{model}: this folder has no {_TOKENIZER_JSON[0]}"


def _holds_tokenizer(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for name in _TOKENIZER_JSON)
