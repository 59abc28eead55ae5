"""The engine's tokenizer is made of the files that the arguments name, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer

from flagscale.errors import UserError
from megatron.flagscale.build_tokenizer import _from_named_files

pytestmark = pytest.mark.filterwarnings("ignore")
MERGES = ("l o", "lo w", "Ġ low")
SPECIAL = ["</s>", "[CLS]", "<|mask|>"]


@pytest.fixture
def args(tmp_path: Path) -> SimpleNamespace:
    """Return arguments that name a vocabulary of bytes and three merges."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", *letters, *(merge.replace(" ", "") for merge in MERGES)]
    vocab, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    vocab.write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    merges.write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    return SimpleNamespace(
        tokenizer_type="GPT2BPETokenizer",
        vocab_file=str(vocab),
        merge_file=str(merges),
        special_tokens=None,
        end_of_document=None,
        tokenizer_hf_no_use_fast=False,
        tokenizer_hf_no_include_special_tokens=False,
        trust_remote_code=False,
        metadata_path=None,
        chat_template=None,
        pad_vocab_size=True,
        padded_vocab_size=None,
        make_vocab_size_divisible_by=64,
        tensor_model_parallel_size=1,
        rank=0,
    )


def build(args: SimpleNamespace, **changes: Any) -> Any:
    return _from_named_files(build_tokenizer)(SimpleNamespace(**{**vars(args), **changes}))


def test_the_engine_alone_asks_a_hub(args: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, the engine reads the files itself: remove the patch."""
    from megatron.core.tokenizers.text.libraries import huggingface_tokenizer

    class Hub:
        @staticmethod
        def from_pretrained(pretrained_model_name_or_path: str, **named: Any) -> None:
            raise ValueError(f"asked for {pretrained_model_name_or_path}")

    monkeypatch.setattr(huggingface_tokenizer, "AutoTokenizer", Hub)
    with pytest.raises(ValueError, match="asked for gpt2"):
        build_tokenizer(args)
    assert build(args).vocab_size > 256


def test_the_files_are_the_tokenizer(args: SimpleNamespace) -> None:
    tokenizer = build(args)
    size = 1 + 256 + len(MERGES)
    assert (tokenizer.vocab_size, tokenizer.eod) == (size, 0)
    low, spaced = size - 2, size - 1
    assert list(tokenizer.tokenize("low low")) == [low, spaced]


def test_special_tokens_follow_in_their_order_and_split_the_text(args: SimpleNamespace) -> None:
    """As in v0.6.0's AquilaTokenizerFS; `<|endoftext|>` in a text is text unless it is listed."""
    tokenizer = build(args, special_tokens=SPECIAL, end_of_document="</s>")
    size = 1 + 256 + len(MERGES)
    assert (tokenizer.vocab_size, tokenizer.eod) == (size + 3, size)
    low, spaced = size - 2, size - 1
    text = "low</s> low[CLS]low<|mask|>"
    assert list(tokenizer.tokenize(text)) == [low, size, spaced, size + 1, low, size + 2]
    assert len(tokenizer.tokenize("<|endoftext|>")) > 1


def test_the_end_of_documents_can_be_named_for_a_folder_too(args: SimpleNamespace, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    from megatron.flagscale.build_tokenizer import from_files

    folder = tmp_path / "folder"
    made = from_files(args.vocab_file, args.merge_file, SPECIAL)
    PreTrainedTokenizerFast(tokenizer_object=made.backend_tokenizer, eos_token="</s>").save_pretrained(folder)
    named = {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": str(folder)}
    named |= {"vocab_file": None, "merge_file": None}
    size = 1 + 256 + len(MERGES)
    assert build(args, **named).eod == size
    assert build(args, **named, end_of_document="[CLS]").eod == size + 1
    with pytest.raises(UserError, match="the tokenizer has no token 'x y'"):
        build(args, **named, end_of_document="x y")
