"""Tokenizers that cannot be converted are refused with a way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flagscale.errors import UserError
from megatron.flagscale.convert.tokenizer import open_tokenizer


def write(folder: Path, tokenizer: bytes, **config: object) -> Path:
    (folder / "tokenizer.model").write_bytes(tokenizer)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_code_is_named_as_the_reason_and_never_run(tmp_path: Path) -> None:
    """The advice of transformers is to pass an argument, which this tool does not have."""
    auto_map = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    folder = write(tmp_path, b"", tokenizer_class="OwnTokenizer", auto_map=auto_map)
    (folder / "tokenization_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match="needs code from its folder, which is never run") as caught:
        open_tokenizer(folder)
    assert "--tokenizer" in str(caught.value)
    assert "trust_remote_code" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_vocabulary_is_noticed(tmp_path: Path) -> None:
    """transformers 5.19 opens it, and encodes every text as nothing."""
    folder = write(tmp_path, b"", tokenizer_class="LlamaTokenizer")
    with pytest.raises(UserError, match="has only special tokens; its files are damaged or missing"):
        open_tokenizer(folder)
