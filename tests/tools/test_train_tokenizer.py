"""The tokenizer: it decodes to the same text, can be opened offline, and never appears incomplete."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from flagscale.errors import UserError
from tools.datasets import train_tokenizer
from tools.datasets.documents import open_source


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_encoding_and_decoding_returns_the_same_text(tokenizer: Path, text: str) -> None:
    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    encoder.encode_special_tokens = True
    assert encoder.decode(encoder.encode(text, add_special_tokens=False).ids) == text


def test_transformers_opens_it_offline(tokenizer: Path) -> None:
    from transformers import AutoTokenizer

    opened = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    assert (len(opened), opened.eos_token, opened.eos_token_id) == (300, train_tokenizer.EOS, 0)
    text = "def  answer() :\n\treturn 'naïve 数'"
    assert opened.decode(opened.encode(text)) == text


def test_megatron_opens_it(tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    library = pytest.importorskip("megatron.core.tokenizers.text.libraries.huggingface_tokenizer")
    opened = library.HuggingFaceTokenizer(str(tokenizer))
    assert (opened.eod, opened.vocab_size) == (0, 300)


def test_special_tokens_are_never_divided(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "a.txt").write_text("the image that is shown here: <image>\n" * 20)
    special = ("<end>", "<image>")
    train_tokenizer.train(open_source(tmp_path / "a.txt"), tmp_path / "t", vocabulary=290, special=special)
    opened = AutoTokenizer.from_pretrained(tmp_path / "t", local_files_only=True)
    assert (opened.eos_token, opened.convert_tokens_to_ids([*special])) == ("<end>", [0, 1])
    assert 1 in opened("see <image>here").input_ids
    with pytest.raises(UserError, match="made with other settings: special"):
        train_tokenizer.train(open_source(tmp_path / "a.txt"), tmp_path / "t", vocabulary=290)


def test_training_twice_gives_the_same_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the same text gives the same tokens, each time " * 20)
    made = []
    for name in ("one", "two"):
        train_tokenizer.train(open_source(tmp_path / "a.txt"), tmp_path / name, vocabulary=290)
        made.append((tmp_path / name / "tokenizer.json").read_bytes())
    assert made[0] == made[1]


def test_an_existing_tokenizer_is_reused_refused_or_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    source, output = open_source(tmp_path / "a.txt"), tmp_path / "made" / "tokenizer"
    assert train_tokenizer.train(source, output, vocabulary=260)
    assert not train_tokenizer.train(source, output, vocabulary=260)
    with pytest.raises(UserError, match=r"vocabulary 260 \(now 261\); .*--overwrite"):
        train_tokenizer.train(source, output, vocabulary=261)
    assert train_tokenizer.train(source, output, vocabulary=261, overwrite=True)
    assert list(output.parent.iterdir()) == [output]


def test_a_folder_from_elsewhere_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "theirs").mkdir()
    with pytest.raises(UserError, match="not made by this tool"):
        train_tokenizer.train(open_source(tmp_path / "a.txt"), tmp_path / "theirs")


def test_a_vocabulary_that_is_too_small_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    with pytest.raises(UserError, match="--vocabulary 256: must be at least 257"):
        train_tokenizer.train(open_source(tmp_path / "a.txt"), tmp_path / "t", vocabulary=256)
