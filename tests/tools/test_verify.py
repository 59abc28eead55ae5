"""The command `verify.py`: what it prints of valid pairs, and which pairs it finds wrong."""

import json
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flagscale_testing.pairs import write_pair
from tools.datasets.documents import open_source
from tools.datasets.preprocess import prepare

Tool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A pair with three sequences and the ids 5 to 700."""
    write_pair(tmp_path / "p", tokens=struct.pack("<9H", 5, 6, 7, 8, 9, 700, 10, 11, 12))
    return tmp_path / "p"


def test_valid_and_broken_pairs_are_reported(pair: Path, tmp_path: Path, tool: Tool) -> None:
    sound = tool("datasets/verify.py", f"{pair}.idx")
    assert sound.returncode == 0
    assert sound.stdout == f"{pair}: valid, 3 documents, 9 tokens of type uint16, ids 5 to 700\n"
    broken = tool("datasets/verify.py", pair, tmp_path / "absent")
    assert broken.returncode == 1
    assert "absent.bin: no such file" in broken.stderr


def test_ids_outside_the_vocabulary_are_found(pair: Path, tool: Tool) -> None:
    assert tool("datasets/verify.py", pair, "--vocab-size", 701).returncode == 0
    found = tool("datasets/verify.py", pair, "--vocab-size", 700)
    assert (found.returncode, found.stdout) == (1, "")
    assert "contains the token id 700, but the tokenizer has 700 tokens (ids 0 to 699)" in found.stderr
    assert "(sequence 2 is the first with such an id)" in found.stderr
    assert tool("datasets/verify.py", pair, "--vocab-size", 0).returncode == 2


def test_negative_ids_are_found(tmp_path: Path, tool: Tool) -> None:
    write_pair(tmp_path / "p", [1, 2], struct.pack("<3i", 5, -6, 7), code=4, itemsize=4)
    found = tool("datasets/verify.py", tmp_path / "p")
    assert found.returncode == 1
    assert "contains the token id -6, but ids start at 0" in found.stderr
    assert "(sequence 1 is the first" in found.stderr


def test_another_tokenizer_is_found(tmp_path: Path, tokenizer: Path, pair: Path, tool: Tool) -> None:
    (tmp_path / "a.txt").write_text("some text")
    prepare(open_source(tmp_path / "a.txt"), tokenizer, tmp_path / "out", valid_every=0)
    prefix, other = tmp_path / "out" / "train_text_document", tmp_path / "other"
    same = tool("datasets/verify.py", prefix, "--tokenizer", tokenizer)
    assert (same.returncode, same.stdout.count("\n")) == (0, 1), same.stderr

    shutil.copytree(tokenizer, other)
    config = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "Qwen2Tokenizer"}))
    found = tool("datasets/verify.py", prefix, "--tokenizer", other)
    assert found.returncode == 1
    assert f"{other}: {prefix} was made with another tokenizer, or with other settings of it" in found.stderr

    without_facts = tool("datasets/verify.py", pair, "--tokenizer", tokenizer)
    assert without_facts.returncode == 1
    assert "contains the token id 700, but the tokenizer has 300 tokens" in without_facts.stderr
    write_pair(pair)
    assert "without facts" in tool("datasets/verify.py", pair, "--tokenizer", tokenizer).stdout


def test_a_tokenizer_without_a_list_of_tokens_is_refused(pair: Path, tmp_path: Path, tool: Tool) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    done = tool("datasets/verify.py", pair, "--tokenizer", tmp_path)
    assert done.returncode == 2
    assert "give --vocab-size too" in done.stderr
