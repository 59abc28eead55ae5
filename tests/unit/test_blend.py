"""The lists of data and how they are split: rules that the engine has, but reports late or never."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagscale.checks.blend import blends, content, named_files, parse, shares
from flagscale.checks.data import data_violations

Write = Callable[..., str]
JOB = {
    "tokenizer_type": "NullTokenizer",
    "vocab_size": 100,
    "seq_length": 4,
    "train_iters": 2,
    "global_batch_size": 2,
    "eval_iters": 1,
    "eval_interval": 1,
}
"""Reads 4 samples of train and 6 of valid."""
TRAIN, VALID, TEST = "train_data_path", "valid_data_path", "test_data_path"
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"data_path": ["A"], "data_args_path": "LIST", "split": "1"}, "data_args_path", "not both"),
    ({"data_args_path": "LIST"}, "split", "`data_args_path` needs `split`"),
    ({"per_split_data_args_path": "TABLE", TRAIN: ["A"]}, "per_split_data_args_path", "not both"),
    ({"data_path": ["A"], "split": "1", VALID: ["A"]}, VALID, "would ignore `valid_data_path`"),
    ({TRAIN: ["A"], "split": "1"}, "split", "cannot be combined with `train_data_path`"),
    ({TRAIN: ["A"], VALID: []}, VALID, "`valid_data_path` is an empty list: remove the key"),
    ({"data_path": ["A"], "split": "0,0"}, "split", "not one to three numbers"),
    ({"data_path": ["A"], "split": "0,50,50"}, "split", "leaves the training, which comes first, no data"),
    ({"data_path": ["A"], "split": "90,x,5"}, "split", "not one to three numbers"),
    ({VALID: ["A"]}, VALID, "no `train_data_path`: the training has no data"),
    ({"data_path": ["A"], "split": "1,1,1,1"}, "split", "not one to three numbers"),
    ({"data_path": ["A"], "split": "-1,2"}, "split", "not one to three numbers"),
    ({TRAIN: ["1", "A", "B", "A"]}, TRAIN, "`B` is in the place of a weight, but is not a number"),
    ({TRAIN: ["1", "A", "0", "A"]}, TRAIN, "a weight must be a number above 0, not 0"),
    ({TRAIN: ["1", "A", "-2", "A"]}, TRAIN, "a weight must be a number above 0, not -2"),
    ({TRAIN: ["nan", "A"]}, TRAIN, "a weight must be a number above 0, not nan"),
    ({TRAIN: ["A"], VALID: ["1", "A"], "full_validation": True}, VALID, "cannot have weights"),
    ({"data_args_path": "absent", "split": "1"}, "data_args_path", "absent: no such file"),
    ({"data_args_path": "EMPTY", "split": "1"}, "data_args_path", "contains no data prefix"),
    ({"per_split_data_args_path": "LIST"}, "per_split_data_args_path", "not JSON"),
    ({"per_split_data_args_path": "HALF"}, "per_split_data_args_path", "with the keys train, valid, test"),
    ({"per_split_data_args_path": "NONE"}, "per_split_data_args_path", "the list of valid is empty"),
    ({"per_split_data_args_path": "BAD"}, "per_split_data_args_path", "the value of valid is not a list"),
    ({"data_path": ["A"]}, "data_path", "the test split of 969, 30, 1 (the default)"),
    ({"data_path": ["A"], "split": "98,1,1"}, "data_path", "the valid split of 98,1,1"),
    ({"data_path": ["1", "A", "1", "SHORT"], "split": "90,10"}, "data_path", "of the 2 that it holds"),
    ({TRAIN: ["SHORT", "SHORT"]}, TRAIN, "the train split has 2 samples of 4 tokens, but the job reads 4"),
    ({TRAIN: ["A"], VALID: ["SHORT", "SHORT"]}, VALID, "the valid split has 2 samples of 4 tokens,"),
    ({TRAIN: ["A"], TEST: ["SHORT", "SHORT"], "eval_iters": 2}, TEST, "the test split has 2 samples"),
    ({"data_path": ["SHORT", "SHORT"], "split": "1"}, "data_path", "the train split has 2 samples"),
]  # fmt: skip
RIGHT: list[dict[str, Any]] = [
    {"data_path": ["A"], "split": "100,0,0"},
    {"data_path": ["A"], "split": "90,5,5"},
    {"data_path": ["A", "A"], "split": "1"},
    {"data_path": ["0.3", "A", "0.7", "SHORT"], "split": "1"},
    {"data_args_path": "LIST", "split": "1"},
    {"per_split_data_args_path": "TABLE"},
    {TRAIN: ["SHORT"]},  # a single prefix is repeated
    {TRAIN: ["1", "SHORT", "1", "SHORT"]},  # and so are prefixes with weights
    {TRAIN: ["SHORT", "SHORT"], "dataloader_type": "cyclic"},
    {TRAIN: ["A"], VALID: ["SHORT", "SHORT"], "full_validation": True},
    {TRAIN: ["A"], VALID: ["SHORT", "SHORT"], "eval_iters": 0},
    {TRAIN: ["s3://bucket/text"]},
    {"data_args_path": "msc://bucket/list", "split": "1"},
    {TRAIN: ["A"], VALID: ["SHORT", "SHORT"], "eval_global_batch_size": 1, "eval_interval": 2},
    {TRAIN: ["A"], VALID: ["SHORT", "SHORT"], "start_eval_at_iter": 2},
    {TRAIN: ["SHORT", "SHORT"], "skip_train": True},
    {VALID: ["A"], "skip_train": True},
    {"data_path": ["A"], "split": " 90 / 5 / 5 "},
]


def found(values: dict[str, Any], folder: Path, write_data: Write) -> list[tuple[str, str]]:
    """Return the violations of these lists; `A` has 20 documents of 5 tokens, `SHORT` 2 of 3."""
    write_data(folder / "A", (5,) * 20)
    write_data(folder / "SHORT", (3, 3))
    for name, text in (
        ("LIST", "1.0 A\n0.5 SHORT\n"),
        ("EMPTY", "\n"),
        ("TABLE", json.dumps({"train": "1 A", "valid": ["A"], "test": None})),
        ("HALF", json.dumps({"train": "A"})),
        ("NONE", json.dumps({"train": "A", "valid": [], "test": None})),
        ("BAD", json.dumps({"train": "A", "valid": 3, "test": None})),
    ):
        (folder / name).write_text(text)
    return list(data_violations({**JOB, **values}, folder))


@pytest.mark.parametrize(("values", "name", "says"), WRONG)
def test_a_wrong_list_of_data(
    tmp_path: Path, write_data: Write, values: dict[str, Any], name: str, says: str
) -> None:
    reported = found(values, tmp_path, write_data)
    reported = [one for one in reported if "no such file" not in one[1] or "absent" in one[1]]
    assert reported
    assert reported[0][0] == name
    assert says in reported[0][1]
    assert {one for one, _ in reported} == {name}


@pytest.mark.parametrize("values", RIGHT)
def test_sound_lists_of_data(tmp_path: Path, write_data: Write, values: dict[str, Any]) -> None:
    assert found(values, tmp_path, write_data) == []


@pytest.mark.parametrize(
    ("words", "prefixes", "weights"),
    [
        (["a"], ("a",), None),
        (["a", "b"], ("a", "b"), None),
        (["0.3", "a", "0.7", "b"], ("a", "b"), (0.3, 0.7)),
        (["1", "a"], ("a",), (1.0,)),
        (["2023", "2024"], ("2024",), (2023.0,)),  # Megatron's rule: one prefix
        (["1e-1", "a", "2", "7"], ("a", "7"), (0.1, 2.0)),
        (["0.3", "a", "b"], ("0.3", "a", "b"), None),
        ([" a "], ("a",), None),
        ([], (), None),
    ],
)
def test_the_prefixes_of_a_list(words: list[str], prefixes: tuple[str, ...], weights: object) -> None:
    assert parse(words) == (prefixes, weights)


def test_the_shares_of_a_split() -> None:
    assert shares("100,0,0") == [(0.0, 1.0), None, None]
    assert shares("98") == [(0.0, 1.0), None, None]
    assert [part and part[0] for part in shares("8, 1, 1")] == [0.0, 0.8, 0.9]
    with pytest.raises(ValueError, match="three numbers"):
        shares("nine")


def test_every_split_has_its_own_blend(tmp_path: Path, write_data: Write) -> None:
    write_data(tmp_path / "A", (5,) * 20)
    first, second = blends({"data_path": ["A"], "split": "95,5"}, tmp_path)
    assert (first.split, first.sequences(tmp_path / "A")) == ("train", (0, 19))
    assert (second.split, second.sequences(tmp_path / "A")) == ("valid", (19, 20))


def test_content_follows_the_data_and_not_its_place(tmp_path: Path, write_data: Write) -> None:
    for place, documents in (("one", (5, 3)), ("other", (5, 3)), ("changed", (3, 5))):
        write_data(tmp_path / place / "text", documents)
    one, other, changed = (
        content({"data_path": [f"{place}/text"]}, tmp_path) for place in ("one", "other", "changed")
    )
    assert one == other != changed
    assert content({"mock_data": True}, tmp_path) == ""
    assert content({"data_path": ["s3://bucket/text"]}, tmp_path) == ""
    assert named_files({"data_path": ["s3://bucket/text"]}, tmp_path) == []
