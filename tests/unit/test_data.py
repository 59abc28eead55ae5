"""The files that a job reads, checked before it starts: data pairs, blends, tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagscale.checks.data import data_violations, input_violations, inputs_of

Write = Callable[..., str]
NULL = {"tokenizer_type": "NullTokenizer", "vocab_size": 100}


def reported(**values: Any) -> list[tuple[str, str]]:
    return list(data_violations({**NULL, **values}))


def test_sound_files(write_data: Write, tmp_path: Path) -> None:
    prefix = write_data(tmp_path / "with.dots and space" / "text")
    assert reported(data_path=[prefix], split="1") == []
    assert reported(data_path=["0.3", prefix, "0.7", prefix], split="1") == []
    assert reported(train_data_path=[prefix], valid_data_path=[prefix]) == []


def test_mock_data_cannot_be_combined_with_files(write_data: Write, tmp_path: Path) -> None:
    assert reported(mock_data=True) == []
    ((name, what),) = reported(mock_data=True, data_path=["x"])
    assert name == "data_path"
    assert what == "give `mock_data` or `data_path`, not both"


def test_missing_data() -> None:
    ((name, what),) = reported()
    assert name == "data_path"
    assert "mock_data: true" in what


def test_a_program_with_its_own_data_needs_none_but_the_named_files_must_exist(tmp_path: Path) -> None:
    def wrong(**values: Any) -> list[str]:
        inputs = inputs_of({**NULL, **values}, has_own_data=True)  # as a host gets them
        return [f"{name}: {what}" for name, what in input_violations(inputs, tmp_path)]

    assert wrong() == []
    assert wrong(mock_data=True, data_path=["x"]) == ["data_path: give `mock_data` or `data_path`, not both"]
    assert all("no such file" in what for what in wrong(data_path=["/nowhere/x"]))
    assert wrong(data_path=["/nowhere/x"])
    assert wrong(data_args_path="absent.txt") == ["data_args_path: absent.txt: no such file"]


def test_every_missing_file_is_reported(tmp_path: Path) -> None:
    found = reported(
        train_data_path=[str(tmp_path / "a"), str(tmp_path / "b")], test_data_path=[str(tmp_path / "c")]
    )
    assert {name for name, _ in found} == {"train_data_path", "test_data_path"}
    for stem in "abc":
        assert any(str(tmp_path / stem) in what for _, what in found)


@pytest.mark.parametrize("cut", [1, 10, 30])
def test_a_truncated_index(write_data: Write, tmp_path: Path, cut: int) -> None:
    prefix = write_data(tmp_path / "text")
    index = tmp_path / "text.idx"
    index.write_bytes(index.read_bytes()[:-cut])
    ((_, what),) = reported(data_path=[prefix])
    assert "text.idx" in what
    assert "truncated" in what


def test_truncated_tokens(write_data: Write, tmp_path: Path) -> None:
    prefix = write_data(tmp_path / "text")
    tokens = tmp_path / "text.bin"
    tokens.write_bytes(tokens.read_bytes()[:-2])
    ((_, what),) = reported(data_path=[prefix])
    assert "text.bin" in what
    assert "truncated" in what


def test_swapped_files(write_data: Write, tmp_path: Path) -> None:
    prefix = write_data(tmp_path / "text")
    tokens, index = tmp_path / "text.bin", tmp_path / "text.idx"
    one, other = tokens.read_bytes(), index.read_bytes()
    tokens.write_bytes(other)
    index.write_bytes(one)
    ((_, what),) = reported(data_path=[prefix])
    assert "swapped" in what


def test_a_suffix_in_the_prefix_is_a_missing_file(write_data: Write, tmp_path: Path) -> None:
    prefix = write_data(tmp_path / "text")
    assert reported(data_path=[prefix + ".bin"]) != []


def test_lists_of_data_are_files(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("1.0 s3://bucket/a")
    assert reported(data_args_path=str(tmp_path / "list.txt"), split="1") == []
    ((name, what),) = reported(per_split_data_args_path=str(tmp_path / "missing.json"))
    assert name == "per_split_data_args_path"
    assert "no such file" in what


def test_tokenizers(tmp_path: Path) -> None:
    def tokenizer(kind: str, **values: Any) -> list[tuple[str, str]]:
        return list(data_violations({"mock_data": True, "tokenizer_type": kind, **values}))

    assert [name for name, _ in tokenizer("NullTokenizer")] == ["vocab_size"]
    assert [name for name, _ in tokenizer("HuggingFaceTokenizer")] == ["tokenizer_model"]
    for missing in ("./missing", "/missing/deep", "missing", "a/b/c"):
        ((name, what),) = tokenizer("HuggingFaceTokenizer", tokenizer_model=missing)
        assert name == "tokenizer_model"
        assert what == f"{missing}: no such tokenizer"
    ((_, what),) = tokenizer("HuggingFaceTokenizer", tokenizer_model="~/tokenizer")
    assert what == "~/tokenizer: write the full path: the engine does not expand `~`"
    assert tokenizer("HuggingFaceTokenizer", tokenizer_model="owner/name-on-a-hub") == []
    ((_, what),) = tokenizer("HuggingFaceTokenizer", tokenizer_model=str(tmp_path))
    assert "has no tokenizer.json" in what
    (tmp_path / "tokenizer.json").touch()
    assert tokenizer("HuggingFaceTokenizer", tokenizer_model=str(tmp_path)) == []
    ((_, what),) = tokenizer("Llama2Tokenizer", tokenizer_model=str(tmp_path))
    assert what == f"{tmp_path} is a folder: Llama2Tokenizer reads one file: name that"
    found = tokenizer("GPT2BPETokenizer", vocab_file=str(tmp_path / "vocab.json"))
    assert [name for name, _ in found] == ["vocab_file", "merge_file"]
    (tmp_path / "vocab.json").write_text('{"<|endoftext|>": 0}')
    (tmp_path / "merges.txt").touch()
    files = {"vocab_file": str(tmp_path / "vocab.json"), "merge_file": str(tmp_path / "merges.txt")}
    assert tokenizer("GPT2BPETokenizer", **files) == []
