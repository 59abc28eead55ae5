"""A host compares the class and the file of a job's tokenizers, in a child process, once."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from flagscale.node.tokenizers import odd_tokenizers


def test_odd_tokenizers_of_a_training_and_of_servers(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    odd = Path(shutil.copytree(tokenizer, tmp_path / "odd"))
    config = json.loads((odd / "tokenizer_config.json").read_text())
    (odd / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "LlamaTokenizerFast"}))
    training = {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": str(odd)}
    (what,) = odd_tokenizers(training, tmp_path)
    assert what.startswith(f"{odd}: the tokenizer's class and its file disagree from token ")

    def fail(*words: Any, **how: Any) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(subprocess, "run", fail)
    assert odd_tokenizers(training, tmp_path) == [what]
    assert odd_tokenizers({"models": [{"model": str(odd)}, {"model": str(odd)}]}, tmp_path) == [what]
    assert odd_tokenizers({"models": [{"model": "owner/name"}]}, tmp_path) == []
    assert odd_tokenizers({"tokenizer_type": "NullTokenizer"}, tmp_path) == []
    (odd / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    with pytest.raises(AssertionError, match="asked again"):
        odd_tokenizers(training, tmp_path)


def test_a_tokenizer_that_cannot_be_compared_is_left_to_the_engine(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("flagscale.node.tokenizers._COMPARER", "no_such_module")
    training = {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": str(tokenizer)}
    assert odd_tokenizers(training, tmp_path) == []
