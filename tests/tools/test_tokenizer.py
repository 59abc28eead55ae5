"""Tokenizer folders: documents have the ids of transformers, and a class that changes ids is found."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from flagscale.checks.tokenizer import eos_token, fingerprint, vocabulary
from flagscale.errors import UserError
from megatron.flagscale.tokenizer import beside_model, comparison, ids_of, open_tokenizer

ROOT = Path(__file__).resolve().parents[2]
EOS = "<|endoftext|>"
TEXT = "def answer(question: str) -> int:\n    return 42"


def template(*names: str) -> dict[str, Any]:
    """Return a post-processor that puts the end-of-text token where `names` says, around the text "A"."""
    single = [
        {"Sequence": {"id": "A", "type_id": 0}}
        if name == "A"
        else {"SpecialToken": {"id": EOS, "type_id": 0}}
        for name in names
    ]
    pair = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    special = {EOS: {"id": EOS, "ids": [0], "tokens": [EOS]}}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


Change = Callable[..., Path]


@pytest.fixture
def change(tokenizer: Path, tmp_path: Path) -> Change:
    """A function that copies the tokenizer with other settings (None: removed) and other file parts."""

    def copy(config: dict[str, Any] | None = None, **parts: Any) -> Path:
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tokenizer, folder)
        for name, values in (("tokenizer_config.json", config or {}), ("tokenizer.json", parts)):
            if not values:
                continue
            content = json.loads((folder / name).read_text()) | values
            kept = {key: value for key, value in content.items() if value is not None or key in parts}
            (folder / name).write_text(json.dumps(kept))
        return folder

    return copy


@pytest.mark.parametrize(
    ("parts", "ends"),
    [
        ({}, False),
        ({"post_processor": template("bos", "A")}, False),
        ({"post_processor": template("A", "eos")}, True),
        ({"post_processor": template("bos", "A", "eos")}, True),
        (
            {"truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}},
            False,
        ),
    ],
)
def test_a_document_has_the_ids_of_transformers_and_one_end(
    change: Change, parts: dict[str, Any], ends: bool
) -> None:
    folder = change(**parts)
    expected = AutoTokenizer.from_pretrained(folder)(TEXT).input_ids
    assert open_tokenizer(folder).documents([TEXT]) == [expected if ends else [*expected, 0]]
    assert ids_of(folder, TEXT) == expected


def test_text_that_spells_a_special_token_does_not_become_one(tokenizer: Path) -> None:
    (ids,) = open_tokenizer(tokenizer).documents([f"a {EOS} b"])
    assert ids.count(0) == 1
    assert ids[-1] == 0


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "GPT2TokenizerFast", None])
def test_a_class_that_keeps_the_ids_of_the_file_is_accepted(change: Change, name: str | None) -> None:
    assert comparison(change({"tokenizer_class": name}), TEXT) is None


@pytest.mark.parametrize("name", ["LlamaTokenizer", "Qwen2Tokenizer"])
def test_a_class_that_changes_the_ids_is_found_and_both_ways_to_fix_it_work(
    change: Change, tmp_path: Path, name: str
) -> None:
    folder = change({"tokenizer_class": f"{name}Fast"})
    found = comparison(folder, TEXT)
    assert found
    for part in (str(folder), f"{name}: ", "tokenizer.json: ", "PreTrainedTokenizerFast", "save_pretrained"):
        assert part in found
    by_class, by_file = (line.partition("(")[0].split(": ")[1].split() for line in found.splitlines()[1:3])
    assert set(map(int, by_class)) <= set(ids_of(folder, TEXT))
    assert by_class != by_file

    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert comparison(tmp_path / "again", TEXT) is None
    assert comparison(change({"tokenizer_class": "PreTrainedTokenizerFast"}), TEXT) is None


def test_a_model_type_that_changes_the_class_is_found(change: Change, tmp_path: Path) -> None:
    folder = change()
    assert comparison(folder, TEXT) is None
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    assert f"The model_type in {folder / 'config.json'} chooses it" in (comparison(folder, TEXT) or "")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "again")
    shutil.copy(folder / "config.json", tmp_path / "again")
    assert comparison(tmp_path / "again", TEXT) is None


def test_the_comparison_runs_alone_in_a_child_process(tokenizer: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from megatron.flagscale.tokenizer import comparison; "
        "print(comparison(Path(sys.argv[1]), 'some text'), 'tools.command' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tokenizer], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "None False\n"


def test_a_model_that_changes_the_class_of_its_tokenizer_is_found(
    change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron.flagscale.tokenizer.SAMPLE", TEXT)
    beside = change({"tokenizer_class": "PreTrainedTokenizerFast"})
    alone = Path(shutil.copytree(beside, beside.with_name("alone")))
    (beside / "config.json").write_text('{"model_type": "llama"}')
    assert beside_model(alone, beside) == ""
    (beside / "config.json").write_text('{"model_type": "qwen2"}')
    what = beside_model(alone, beside)
    assert "transformers opens it as Qwen2Tokenizer" in what
    assert re.search(r": [\d ]+ instead of [\d ]+ from token \d+ on", what)


def test_a_folder_that_cannot_be_opened_is_a_users_mistake(change: Change, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json: no such file"):
        open_tokenizer(tmp_path)
    with pytest.raises(UserError, match="transformers cannot open this tokenizer"):
        open_tokenizer(change(model={"type": "unknown"}))
    with pytest.raises(UserError, match="ByT5Tokenizer has no fast implementation"):
        open_tokenizer(change({"tokenizer_class": "ByT5Tokenizer"}))


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "pad": {"pad_token": "<pad>"},
    "long form": {"pad_token": {"__type": "AddedToken", "content": "<pad>", "lstrip": False}},
    "extra": {"additional_special_tokens": ["<x>", "<y>", EOS]},
    "own name": {"image_token": "<image>"},
    "decoder": {
        "added_tokens_decoder": {"0": {"content": EOS, "special": True}, "450": {"content": "<far>"}}
    },
    "GPT2": {"tokenizer_class": "GPT2TokenizerFast"},
    "BOS": {"bos_token": EOS, "add_bos_token": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_vocabulary_and_the_end_are_those_of_transformers(change: Change, name: str) -> None:
    folder = change(SETTINGS[name])
    opened = AutoTokenizer.from_pretrained(folder)
    assert (vocabulary(folder), eos_token(folder)) == (len(opened), opened.eos_token)


@pytest.mark.parametrize("kind", ["Unigram", "WordLevel", "WordPiece"])
def test_the_vocabulary_of_other_models_is_that_of_transformers(change: Change, kind: str) -> None:
    words = [EOS, "a", "b", "<unk>"]
    listed: Any = {word: number for number, word in enumerate(words)}
    model: dict[str, Any] = {"type": kind, "vocab": listed, "unk_token": "<unk>"}
    if kind == "Unigram":
        model = {"type": kind, "vocab": [[word, -1.0] for word in words], "unk_id": 3}
    elif kind == "WordPiece":
        model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    folder = change(model=model)
    assert vocabulary(folder) == len(AutoTokenizer.from_pretrained(folder)) == 4
    content = json.loads((folder / "tokenizer.json").read_text())
    del content["model"]["vocab"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert vocabulary(folder) is None


def test_the_end_of_the_special_tokens_map_counts_as_in_transformers(change: Change) -> None:
    folder = change({"eos_token": "<other>"})
    assert eos_token(folder) == AutoTokenizer.from_pretrained(folder).eos_token == EOS
    folder = change({"eos_token": "<other>", "added_tokens_decoder": {}})
    assert eos_token(folder) == AutoTokenizer.from_pretrained(folder).eos_token == "<other>"


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ({"tokenizer_class": "LlamaTokenizerFast"}, True),
        ({"add_bos_token": True}, True),
        ({"add_eos_token": True}, True),
        ({"bos_token": EOS}, True),
        ({"model_max_length": 7, "chat_template": "{{ messages }}"}, False),
    ],
)
def test_the_fingerprint_changes_with_what_can_change_the_ids(
    change: Change, tokenizer: Path, config: dict[str, Any], changes: bool
) -> None:
    assert (fingerprint(change(config)) != fingerprint(tokenizer)) == changes


def test_the_fingerprint_covers_every_file_that_counts(change: Change, tokenizer: Path) -> None:
    seen = {fingerprint(tokenizer), fingerprint(change(post_processor=template("bos", "A")))}
    for name, content in (
        ("special_tokens_map.json", {"eos_token": "x"}),
        ("added_tokens.json", {"<x>": 300}),
    ):
        folder = change()
        assert fingerprint(folder) == fingerprint(tokenizer), "a copy"
        (folder / name).write_text(json.dumps(content))
        seen.add(fingerprint(folder))
    assert len(seen) == 4
    folder = change()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert fingerprint(folder) == fingerprint(tokenizer), "beside a model"


def test_damaged_settings_are_reported(change: Change) -> None:
    folder = change()
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: cannot be read as JSON"):
        fingerprint(folder)
