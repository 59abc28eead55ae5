"""The tokenizer types of FlagScale v0.6.0, their files, and the sizes of their vocabularies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flagscale.checks.vocabulary import tokenizer_of, vocabulary_of
from flagscale.config.catalog import Catalog
from flagscale.config.engine_args import Unknown
from flagscale.config.v060.tokenizers import TOKENIZERS
from tests.unit.test_megatron_adapter import Build, Refused, value
from tests.unit.test_v060_translate import translate

HF, BPE = "HuggingFaceTokenizer", "GPT2BPETokenizer"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Write a vocabulary of three tokens, its merges and two special tokens; return the keys of v0.6.0."""
    (tmp_path / "vocab.json").write_text(json.dumps({"<|endoftext|>": 0, "a": 1, "b": 2}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "special.txt").write_text("</s>\n[CLS]\n")
    names = {"vocab_file": "vocab.json", "merge_file": "merges.txt", "special_tokens_file": "special.txt"}
    return {key: str(tmp_path / name) for key, name in names.items()}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_each_type_has_a_successor(catalog: Catalog, name: str) -> None:
    kept, _, notices, problems = translate({"tokenizer_type": name})
    assert kept["tokenizer_type"] == TOKENIZERS[name] in catalog.by_name["tokenizer_type"].choices
    assert f"train.tokenizer_type: `{name}` is now `{TOKENIZERS[name]}`" in notices
    assert any("`trust_remote_code: true`" in notice for notice in notices) == (TOKENIZERS[name] == HF)
    assert problems == []


@pytest.mark.parametrize("name", TOKENIZERS)
def test_each_type_may_name_a_folder(name: str) -> None:
    """Aquila's did not, but its folder in Hugging Face's form is a good successor of the files."""
    kept, _, notices, _ = translate({"tokenizer_type": name, "tokenizer_path": "./folder"})
    assert kept["tokenizer_type"] == HF
    assert kept["tokenizer_model"] in ("./folder", "folder")
    assert f"train.tokenizer_type: `{name}` is now `{HF}`" in notices


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("AquilaTokenizerFS", "</s>"),
        ("HFTokenizersTokenizerFS", "<|endoftext|>"),
        ("QwenTokenizerFS", "<|extra_204|>"),
        ("Llama3TokenizerFS", None),
        ("HFTokenizerFS", None),
        ("Qwen2TokenizerFS", None),
    ],
)
def test_the_token_that_ends_a_document_is_kept(name: str, ending: str | None) -> None:
    assert translate({"tokenizer_type": name})[0].get("end_of_document") == ending
    assert translate({"tokenizer_type": name, "end_of_document": "x"})[0]["end_of_document"] == "x"
    reported = any("eos_token" in notice for notice in translate({"tokenizer_type": name})[2])
    assert reported == (name == "Qwen2TokenizerFS")


def test_aquilas_files(build: Build, files: dict[str, str]) -> None:
    job = build({"tokenizer_type": "AquilaTokenizerFS", "vocab_size": None, **files})
    assert value(job, "--tokenizer-type") == BPE
    at = job.role.argv.index("--tokenizer-special-tokens")
    assert job.role.argv[at + 1 : at + 3] == ("</s>", "[CLS]")
    assert value(job, "--end-of-document") == "</s>"
    notice = "train.special_tokens_file: is now `tokenizer_special_tokens`, the lines of the file"
    assert notice in job.notices
    same: dict[str, Any] = {**files, "tokenizer_special_tokens": ["</s>", "[CLS]"]}
    del same["special_tokens_file"]
    other = build({"tokenizer_type": BPE, "vocab_size": None, "end_of_document": "</s>", **same})
    assert sorted(other.role.argv) == sorted(job.role.argv)
    assert other.notices == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"special_tokens_file": "nowhere.txt"}, "special_tokens_file: nowhere.txt: no such file"),
        ({"tokenizer_special_tokens": ["x"]}, "give `special_tokens_file` or `tokenizer_special_tokens`"),
        ({"vocab_file": "nowhere.json"}, "vocab_file: GPT2BPETokenizer needs `vocab_file`: nowhere.json: no"),
        ({"merge_file": None}, "merge_file: GPT2BPETokenizer needs `merge_file`"),
        ({"vocab_file": "y" * 300}, "GPT2BPETokenizer needs `vocab_file`: yyy"),
        ({"merge_file": "y" * 300}, "GPT2BPETokenizer needs `merge_file`: yyy"),
        ({"vocab_file": __file__}, "cannot be read as JSON"),
        ({"end_of_document": "<end>"}, "has the token '<end>', which ends a document: name another one"),
    ],
)
def test_files_that_do_not_fit(
    refused: Refused, files: dict[str, str], changes: dict[str, Any], message: str
) -> None:
    keys = {"tokenizer_type": "AquilaTokenizerFS", "vocab_size": None, **files, **changes}
    (problem,) = refused(keys)
    assert message in problem


def test_special_tokens_that_would_shift_the_others(refused: Refused, files: dict[str, str]) -> None:
    keys = {**files, "special_tokens_file": None, "tokenizer_special_tokens": ["x", "a", "x"]}
    (problem,) = refused({"tokenizer_type": BPE, "vocab_size": None, **keys})
    assert "names 'a', 'x', which the vocabulary or the list already has" in problem
    Path(files["vocab_file"]).write_text('{"a": 1}')
    (problem,) = refused(
        {"tokenizer_type": BPE, "vocab_size": None, "tokenizer_special_tokens": None, **files}
    )
    assert "not a vocabulary: a JSON object with ids from 0 on by token" in problem


def test_the_size_and_the_identity_of_a_tokenizer_of_files(files: dict[str, str]) -> None:
    named = {name: files[name] for name in ("vocab_file", "merge_file")}
    values: dict[str, Any] = {"tokenizer_type": BPE, "special_tokens": ["</s>", "[CLS]"], **named}
    assert vocabulary_of(values) == 5
    seen = {tokenizer_of(values), tokenizer_of({**values, "end_of_document": "</s>"})}
    seen |= {tokenizer_of({**values, "special_tokens": ["[CLS]", "</s>"]}), ""}
    Path(files["merge_file"]).write_text("#version: 0.2\n")
    assert len({*seen, tokenizer_of(values)}) == 5
    assert tokenizer_of({**values, "merge_file": "nowhere"}) == ""


def test_data_of_a_tokenizer_of_files_is_compared_by_its_ids(
    refused: Refused, build: Build, files: dict[str, str], tmp_path: Path, write_data: Any
) -> None:
    from flagscale.checks.facts import write_facts

    prefix = Path(write_data(tmp_path / "text", (100,) * 50))
    known = {"tokenizers": ["another"], "vocabulary": 9, "sample": {"text": "a", "ids": [1]}}
    keys = {"tokenizer_type": "AquilaTokenizerFS", "vocab_size": None, **files}
    keys |= {"mock_data": None, "data_path": str(prefix), "split": "1"}
    write_facts(prefix, {"largest_id": 4, **known})
    assert build(keys).role.argv
    write_facts(prefix, {"largest_id": 5, **known})
    (problem,) = refused(keys)
    assert "contains the token id 5, but the tokenizer has 5 tokens" in problem


def test_a_special_tokens_file_that_nothing_reads_is_dropped() -> None:
    kept, _, notices, problems = translate({"tokenizer_type": "Llama2Tokenizer", "special_tokens_file": "x"})
    assert (kept, problems) == ({"tokenizer_type": "Llama2Tokenizer"}, [])
    assert notices == ["train.special_tokens_file: dropped because Llama2Tokenizer does not read it"]


def test_a_path_that_is_not_known_hides_nothing_else() -> None:
    """Such as one whose interpolation failed, which has been reported."""
    unknown = Unknown.VALUE
    kept = translate({"tokenizer_type": "HFTokenizersTokenizerFS", "tokenizer_path": unknown})[0]
    assert (kept["tokenizer_type"], kept["tokenizer_model"]) == (HF, unknown)
    kept = translate({"tokenizer_type": "AquilaTokenizerFS", "special_tokens_file": unknown})[0]
    assert (kept["tokenizer_special_tokens"], kept["end_of_document"]) == (unknown, unknown)
    assert kept["tokenizer_type"] == BPE
    kept, _, notices, _ = translate({"tokenizer_type": unknown, "special_tokens_file": "x"})
    assert (kept["tokenizer_special_tokens"], notices) == (unknown, [])


def test_a_tokenizer_named_by_its_file_is_its_folder() -> None:
    name = "HFTokenizersTokenizerFS"
    kept = translate({"tokenizer_type": name, "tokenizer_path": "folder/tokenizer.json"})[0]
    assert kept["tokenizer_model"] == "folder"
    kept, _, _, problems = translate({"tokenizer_type": name, "tokenizer_path": "folder/20B.json"})
    assert kept["tokenizer_model"] is Unknown.VALUE
    assert problems[0].what == "folder/20B.json: a tokenizer is a folder with a file `tokenizer.json`"


def test_the_vocabulary_size_of_qwen2_is_the_models() -> None:
    """It is larger than the tokenizer's: 151936 is no multiple of 128 x 2."""
    keys = {"tokenizer_type": "Qwen2TokenizerFS", "vocab_size": 151936, "tensor_model_parallel_size": 2}
    kept, _, notices, _ = translate(keys)
    assert kept["padded_vocab_size"] == 152064
    assert "vocab_size" not in kept
    assert "train.vocab_size: is now `padded_vocab_size: 152064`" in notices
    assert translate({**keys, "make_vocab_size_divisible_by": 64})[0]["padded_vocab_size"] == 151936


def test_what_a_tokenizer_ignores_is_a_notice(build: Build, files: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}}))
    keys = {"tokenizer_type": HF, "tokenizer_model": str(folder), "vocab_file": files["vocab_file"]}
    notices = build({**keys, "vocab_size": 9, "vocab_extra_ids": 3}).notices
    assert sorted(notices) == [
        f"train.vocab_extra_ids: has no effect with `tokenizer_type: {HF}`",
        f"train.vocab_file: has no effect with `tokenizer_type: {HF}`",
        f"train.vocab_size: has no effect with `tokenizer_type: {HF}`: it has 2 tokens; the model's number "
        "is `padded_vocab_size`",
    ]
    assert build({**keys, "vocab_file": None, "vocab_size": 2}).notices == ()
