"""Blends of Energon: names that do not exist, misspelt keys, wrong weights, circles."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagscale.checks.energon_blend import has_split, read_data
from flagscale.checks.energon_folder import FolderSplit
from flagscale_testing.energon_folders import write_folder

HEAD = "__module__: megatron.energon\n__class__: MetadatasetV2\n"


@pytest.fixture
def blend(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        write_folder(tmp_path / name, {"train": 2, "val": 1})
    return tmp_path / "blend.yaml"


def wrong(blend: Path, text: str, split: str = "train") -> list[str]:
    blend.write_text(text)
    return [what.replace(f"{blend.parent}/", "") for what in read_data(blend, split).wrong]


SOUND = [
    HEAD + "splits: {train: {blend: [{weight: 2, path: a}, {weight: 0.5, path: ./b}]}}",
    HEAD + "splits: {train: {blend_epochized: [{repetitions: 2, path: a}, {path: b, subflavors: {x: y}}]}}",
    "splits: {train: {datasets: [{weight: 2, path: a}, {path: b, split_part: train}]}}",
]


@pytest.mark.parametrize("text", SOUND)
def test_sound_blends(blend: Path, text: str) -> None:
    assert wrong(blend, text) == []
    found = read_data(blend, "train").parts
    assert found == [FolderSplit(blend.parent / name, "train") for name in ("a", "b")]
    assert (has_split(blend, "train"), has_split(blend, "val")) == (True, False)


def test_a_single_folder_and_another_blend(blend: Path) -> None:
    other = blend.parent / "other.yaml"
    other.write_text(HEAD + "splits: {val: {path: b, split_part: train}}")
    assert wrong(blend, HEAD + "splits: {val: {blend: [{path: a}, {path: other.yaml}]}}", "val") == []
    found = read_data(blend, "val").parts
    assert found == [FolderSplit(blend.parent / "a", "val"), FolderSplit(blend.parent / "b", "train")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "splits: {train: {blend: [{weihgt: 2, path: a}]}}",
            "[0]: unknown key `weihgt`; did you mean `weight`?",
        ),
        ("splits: {train: {blend: [{weight: 0, path: a}]}}", "[0]: `weight: 0` is not a number above 0"),
        ("splits: {train: {blend: [{weight: .inf, path: a}]}}", "`weight: inf` is not a number above 0"),
        ("splits: {train: {blend: [{weight: two, path: a}]}}", "`weight: two` is not a number above 0"),
        ("splits: {train: {blend: [{weight: true, path: a}]}}", "`weight: True` is not a number above 0"),
        (
            "splits: {train: {blend_epochized: [{repetitions: -1, path: a}]}}",
            "`repetitions: -1` is not a number",
        ),
        ("splits: {train: {blend: [{weight: 2}]}}", "[0]: `path` is missing or not a text"),
        ("splits: {train: {blend: [{path: 5}]}}", "[0]: `path` is missing or not a text"),
        ("splits: {train: {blend: [{path: a, split_part: [b]}]}}", "`split_part` is missing or not a text"),
        ("splits: {train: {blend: [{path: c}]}}", "c: no such Energon folder"),
        ("splits: {train: {blend: [a]}}", "splits.train.blend[0] is not a mapping with `path`"),
        ("splits: {train: {blend: a}}", "splits.train.blend is not a list of data"),
        ("splits: {train: {blend: []}}", "splits.train.blend is not a list of data"),
        ("splits: {train: {blned: []}}", "`blned`: did you mean `blend`?"),
        ("splits: {train: {blend: [{path: a}], x: 1}}", "splits.train: unknown key `x`"),
        ("splits: {train: {blend: [{path: a}]}}\nsed: 3", "unknown key `sed`; valid: __class__,"),
        ("splits: {train: a}", "splits.train is not a mapping with `blend` or `path`"),
        ("splits: {train: {path: a, subset: {rnge: [0, 1]}}}", "splits.train: `subset: {'rnge': [0, 1]}` is"),
        ("splits: {train: {path: a, subset: {range: [50%, 9%]}}}", "is not like `{range: [0%, 50%]}`"),
        ("splits: {train: {path: a, subset: {range: [0, 50%]}}}", "is not like `{range: [0%, 50%]}`"),
        ("splits: {train: {blend: [{path: a}], subset: 9}}", "splits.train: `subset: 9` is not like"),
        ("splits: {train: {blend: [{path: a, subflavors: x}]}}", "[0]: `subflavors: x` is not a mapping"),
        (
            "splits: {train: {datasets: [{path: a}]}}",
            "needs one of `blend`, `blend_epochized`, `path`; `datasets`",
        ),
        (
            "splits: {train: {blend: [{path: a, aux: {x: b}}]}}",
            "[0]: `aux` is not supported: each sample is whole",
        ),
        (
            "splits: {train: {join: [{path: a}]}}",
            "splits.train needs one of `blend`, `blend_epochized`, `path`",
        ),
        ("splits: {val: {path: a}}", "no split `train`; it has val"),
        ("splits: []", "no split `train`; it has none"),
        ("spilts: {train: {path: a}}", "unknown key `spilts`; did you mean `splits`?"),
        ("splits: {train: {path: blend.yaml}}", "blend.yaml: this blend contains itself"),
        ("splits: {train: {path: a/train-000000.tar}}", "name the folder, a"),
        ("splits: {train: {path: a, split_part: x}}", "no split `x`; it has train, val"),
    ],
)
def test_mistakes_in_a_blend(blend: Path, text: str, says: str) -> None:
    (what,) = wrong(blend, HEAD + text)
    assert says in what


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("__module__: os\n__class__: system\nsplits: {}", "`os.system` is not a blend"),
        ("__class__: MetadatasetV3\nsplits: {}", "`megatron.energon.MetadatasetV3` is not a blend"),
        (
            "splits: {train: {blend: [{path: a}]}}",
            "`blend` needs `__module__: megatron.energon` and `__class__",
        ),
        ("splits: {train: {path: a}}", "needs one of `datasets`; `blend` needs"),
        ("a: [", ": not YAML: "),
        ("- a", "blend.yaml: not a mapping"),
    ],
)
def test_a_file_that_is_no_blend(blend: Path, text: str, says: str) -> None:
    (what,) = wrong(blend, text)
    assert says in what


def test_all_mistakes_are_reported_at_once(blend: Path) -> None:
    text = HEAD + "splits: {train: {blend: [{wieght: 1, path: c}, {weight: 0, path: d}]}}"
    assert len(wrong(blend, text)) == 4


def test_a_file_with_another_ending_is_no_blend(blend: Path) -> None:
    other = blend.with_suffix(".yml")
    other.write_text(SOUND[0])
    assert "a blend is a file whose name ends in .yaml" in read_data(other, "train").wrong[0]
    assert not has_split(blend.parent / "nowhere", "val")
