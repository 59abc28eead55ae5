"""Tokenizers that cannot be converted are refused with a way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flagscale.errors import UserError
from flagscale_testing.chat_templates import write_chat_tokenizer
from megatron.flagscale.convert.tokenizer import Tokenizer, open_tokenizer, with_template


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


def test_a_chosen_chat_template_is_written_and_the_end_of_its_answers_ends_text(tmp_path: Path) -> None:
    folder = write_chat_tokenizer(tmp_path / "base", None)
    chosen = with_template(open_tokenizer(folder), "chatml")
    chosen.copy(tmp_path / "copy")
    assert "<|im_start|>" in (tmp_path / "copy" / "chat_template.jinja").read_text()
    ends = [chosen.vocab[token] for token in ("</s>", "<|im_end|>")]
    assert chosen.generation["eos_token_id"] == ends
    with pytest.raises(UserError, match="--chat-template chatmll: is neither a file nor"):
        with_template(open_tokenizer(folder), "chatmll")
    with pytest.raises(UserError, match="written into the model's tokenizer, but it has none"):
        with_template(Tokenizer(), "chatml")
