"""The facts beside a pair: they are only found with the bytes that they were written for."""

import json
import os
from pathlib import Path

import pytest

from flagscale.checks.facts import facts, facts_path, identity, write_facts
from flagscale.checks.indexed import bin_path, idx_path
from flagscale_testing.pairs import write_pair

KNOWN = {"largest_id": 7, "vocabulary": 8, "tokenizers": ["x"], "sample": {"text": "a", "ids": [7]}}


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A pair of 400 KB with facts, whose name contains dots."""
    prefix = tmp_path / "train.v1_text_document"
    write_pair(prefix, [100_000, 100_000])
    write_facts(prefix, KNOWN)
    return prefix


def test_facts_are_read_back_with_their_version_and_identity(prefix: Path) -> None:
    assert facts_path(prefix).name == "train.v1_text_document.json"
    assert facts(prefix) == {"version": 1, **KNOWN, "identity": identity(prefix)}


def test_facts_survive_a_copy_of_the_pair(prefix: Path, tmp_path: Path) -> None:
    for path in (idx_path(prefix), bin_path(prefix), facts_path(prefix)):
        (tmp_path / path.name.replace("v1", "copy")).write_bytes(path.read_bytes())
    copy = tmp_path / "train.copy_text_document"
    os.utime(bin_path(copy), ns=(1, 1))
    assert facts(copy) == facts(prefix)


@pytest.mark.parametrize("position", [0, 4095, 400_000 - 4096, 399_999])
def test_facts_of_other_bytes_are_ignored(prefix: Path, position: int) -> None:
    content = bytearray(bin_path(prefix).read_bytes())
    content[position] ^= 1
    bin_path(prefix).write_bytes(content)
    assert facts(prefix) is None


def test_facts_of_a_rebuilt_pair_are_ignored(prefix: Path) -> None:
    write_pair(prefix, [100_001, 99_999])
    assert facts(prefix) is None


@pytest.mark.parametrize("content", [None, "{", "[]", "7", '{"version": 2}', '{"version": 1}'])
def test_unusable_facts_are_none(prefix: Path, content: str | None) -> None:
    facts_path(prefix).unlink()
    if content is not None:
        facts_path(prefix).write_text(content)
    assert facts(prefix) is None


@pytest.mark.parametrize(
    "change",
    [
        {"largest_id": None},
        {"vocabulary": "8"},
        {"tokenizers": "x"},
        {"sample": []},
        {"sample": {"text": "a"}},
    ],
)
def test_facts_of_other_types_are_none(prefix: Path, change: dict[str, object]) -> None:
    write_facts(prefix, KNOWN | change)
    assert facts(prefix) is None


def test_facts_of_another_version_are_ignored(prefix: Path) -> None:
    content = json.loads(facts_path(prefix).read_text()) | {"version": 2}
    facts_path(prefix).write_text(json.dumps(content))
    assert facts(prefix) is None


def test_facts_without_their_pair_are_none(prefix: Path) -> None:
    idx_path(prefix).unlink()
    assert facts(prefix) is None
