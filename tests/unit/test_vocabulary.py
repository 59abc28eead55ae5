"""Data, tokenizer and vocabulary belong together, whichever tool made the data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagscale.checks import data, scans
from flagscale.checks.data import data_violations
from flagscale.checks.facts import write_facts
from flagscale.checks.tokenizer import fingerprint
from flagscale.checks.vocabulary import unscanned, vocabulary_of
from flagscale.errors import Violation

Write = Callable[..., str]
JOB = {"seq_length": 4, "train_iters": 1, "global_batch_size": 1, "eval_iters": 0}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def tokenizer(folder: Path, tokens: int, added: tuple[int, ...] = ()) -> Path:
    folder.mkdir()
    vocab = {f"t{number}": number for number in range(tokens)}
    added_tokens = [{"id": number, "content": f"<{number}>"} for number in added]
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "BPE", "vocab": vocab}, "added_tokens": added_tokens})
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "t0"}))
    return folder


def reported(folder: Path, prefix: str, **values: Any) -> list[Violation]:
    own = {
        "tokenizer_type": "HuggingFaceTokenizer",
        "tokenizer_model": str(folder),
        "train_data_path": [prefix],
    }
    return list(data_violations({**JOB, **own, **values}))


def with_facts(prefix: str, largest: int, folder: Path) -> None:
    sample = {"text": "a", "ids": [1]}
    known = {"largest_id": largest, "tokenizers": [fingerprint(folder)], "vocabulary": 50, "sample": sample}
    write_facts(Path(prefix), known)


def remember(prefix: str, smallest: int, largest: int) -> None:
    scans.remember_range(Path(prefix), scans.stamp(Path(prefix)), smallest, largest)


def test_how_many_tokens_a_tokenizer_has(tmp_path: Path) -> None:
    folder = tokenizer(tmp_path / "t", 10, added=(11, 12))
    values = {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": "t"}
    assert vocabulary_of(values, tmp_path) == 13
    assert vocabulary_of({**values, "special_tokens": ["<new>"]}, tmp_path) == 14
    assert vocabulary_of({"tokenizer_type": "NullTokenizer", "vocab_size": 100}) == 100
    assert vocabulary_of({"tokenizer_type": "SentencePieceTokenizer", "tokenizer_model": "m"}) is None
    assert vocabulary_of({**values, "tokenizer_model": "owner/name"}, tmp_path) is None
    (folder / "tokenizer.json").unlink()
    assert vocabulary_of(values, tmp_path) is None


def test_recorded_ids_beyond_the_vocabulary(tmp_path: Path, write_data: Write) -> None:
    prefix, folder = write_data(tmp_path / "text"), tokenizer(tmp_path / "t", 50)
    with_facts(prefix, 49, folder)
    assert reported(folder, prefix) == []
    with_facts(prefix, 50, folder)
    ((name, what),) = reported(folder, prefix)
    assert name == "train_data_path"
    assert "contains the token id 50, but the tokenizer has 50 tokens (ids 0 to 49)" in what
    ((_, what),) = reported(folder, prefix, tokenizer_type="NullTokenizer", vocab_size=20)
    assert "the tokenizer has 20 tokens" in what


def test_a_tokenizer_that_cannot_be_read(tmp_path: Path, write_data: Write) -> None:
    prefix, folder = write_data(tmp_path / "text"), tokenizer(tmp_path / "t", 50)
    (folder / "tokenizer.json").write_text("{")
    remember(prefix, 0, 5)
    ((name, what),) = reported(folder, prefix)
    assert name == "tokenizer_model"
    assert "tokenizer.json: cannot be read as JSON" in what


def test_data_of_another_tokenizer_with_the_same_size(tmp_path: Path, write_data: Write) -> None:
    prefix = write_data(tmp_path / "text")
    one, other = tokenizer(tmp_path / "one", 50), tokenizer(tmp_path / "other", 51)
    with_facts(prefix, 49, one)
    assert reported(one, prefix) == []
    ((name, what),) = reported(other, prefix)
    assert name == "tokenizer_model"
    assert f"{prefix} was made with another tokenizer" in what


def test_facts_of_earlier_data_do_not_count(tmp_path: Path, write_data: Write) -> None:
    prefix, folder = write_data(tmp_path / "text"), tokenizer(tmp_path / "t", 50)
    with_facts(prefix, 99, folder)
    write_data(tmp_path / "text", (4, 4))
    assert reported(folder, prefix) == []
    assert unscanned({"train_data_path": [prefix]}) == [Path(prefix)]


def test_scanned_ids_are_known_until_the_data_changes(tmp_path: Path, write_data: Write) -> None:
    prefix, folder = write_data(tmp_path / "text"), tokenizer(tmp_path / "t", 50)
    assert unscanned({"train_data_path": [prefix]}) == [Path(prefix)]
    remember(prefix, 0, 100029)
    assert unscanned({"train_data_path": [prefix]}) == []
    ((_, what),) = reported(folder, prefix)
    assert "contains the token id 100029" in what
    remember(prefix, -1, 4)
    ((_, what),) = reported(folder, prefix)
    assert "contains the token id -1, but ids start at 0" in what
    write_data(tmp_path / "text", (3, 5))
    assert reported(folder, prefix) == []


def test_a_scan_that_takes_a_while_is_announced(
    tmp_path: Path, write_data: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"train_data_path": [write_data(tmp_path / "text")]}
    assert list(data.data_remarks(values)) == []
    monkeypatch.setattr(data, "_MUCH", 10)
    ((name, what),) = data.data_remarks(values)
    assert name == "train_data_path"
    assert "has no facts beside it: its 0.0 GB are read once before the start" in what
    remember(str(tmp_path / "text"), 0, 1)
    assert list(data.data_remarks(values)) == []


def test_a_cache_that_cannot_be_written_only_costs_time(
    tmp_path: Path, write_data: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = Path(write_data(tmp_path / "text"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    scans.remember_range(prefix, scans.stamp(prefix), 0, 5)
    assert scans.known_range(prefix) is None
