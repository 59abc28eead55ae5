"""Data of other tools is read once, on the host that has it, by a check or a start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flagscale.checks import vocabulary
from flagscale.node.data import scan
from flagscale.node.probe import probe
from flagscale_testing.pairs import write_pair


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(prefix: Path, token: int) -> Path:
    write_pair(prefix, [5, 3], bytes([token, 0]) * 8)
    return prefix


def inputs(vocab_size: int, *prefixes: str) -> dict[str, object]:
    return {
        "tokenizer_type": "NullTokenizer",
        "vocab_size": vocab_size,
        "train_data_path": [*prefixes],
        "seq_length": 4,
    }


def test_ids_beyond_the_vocabulary_are_found_and_remembered(tmp_path: Path, cache: Path) -> None:
    sound, wrong = write(tmp_path / "sound", 9), write(tmp_path / "wrong", 100)
    (what,) = scan(inputs(100, "sound", "wrong"), tmp_path)
    assert what.startswith(f"{wrong}.bin: contains the token id 100, but the tokenizer has 100 tokens")
    assert vocabulary.range_of(sound) == (9, 9)
    assert vocabulary.range_of(wrong) == (100, 100)
    assert scan(inputs(100, "sound", "wrong"), tmp_path) == []  # now a rule of the inputs reports it
    assert len([*cache.rglob("*.json")]) == 2


def test_the_probe_of_a_host_reads_its_data(tmp_path: Path) -> None:
    write(tmp_path / "text", 100)
    question = {
        "directory": str(tmp_path),
        "platform": "cpu",
        "distributions": [],
        "packages": ["pytest", "no-such-package", "no-such-package|pytest", "no-such|neither"],
        "inputs": inputs(100, "text"),
        "cwd": str(tmp_path),
        "listens": [],
        "mark": "",
        "is_check": False,
        "address": "",
        "ports": [],
    }
    assert probe(json.dumps(question))["missing"] == ["no-such-package", "no-such|neither"]
    for _ in range(2):
        (what,) = probe(json.dumps(question))["wrong_inputs"]
        assert "contains the token id 100" in what
    assert probe(json.dumps({**question, "inputs": inputs(101, "text")}))["wrong_inputs"] == []


def test_a_scan_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "text", 1)
    monkeypatch.setattr("flagscale.node.data._SCANNER", "no_such_module")
    (what,) = scan(inputs(100, "text"), tmp_path)
    assert what.startswith("the token ids of the data could not be read: ")
    assert "no_such_module" in what
