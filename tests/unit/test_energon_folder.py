"""Folders that Energon reads: what is missing, half prepared, empty, or of another form."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from flagscale.checks.energon_blend import read_data
from flagscale.checks.energon_folder import META, FolderSplit, expanded, facts_of, samples_of
from flagscale_testing.energon_folders import write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pictures", {"train": 12, "val": 0})


def wrong(path: Path, split: str = "train") -> list[str]:
    return [what.replace(f"{path.parent}/", "") for what in read_data(path, split).wrong]


def replaced(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / META / name).write_text(text)


def written(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def removed(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def test_a_sound_folder(folder: Path) -> None:
    assert wrong(folder) == []
    assert samples_of(FolderSplit(folder, "train")) == 12
    assert facts_of(FolderSplit(folder, "train")) == {}


@pytest.mark.parametrize(
    ("damage", "split", "says"),
    [
        (None, "val", "pictures: the split `val` has no samples"),
        (None, "test", "split.yaml: no split `test`; it has train, val"),
        (
            removed(f"{META}/.info.json"),
            "train",
            "not completely prepared: .nv-meta has no .info.json; prepare",
        ),
        (
            removed(f"{META}/split.yaml"),
            "train",
            "not completely prepared: .nv-meta has no split.yaml; prepare",
        ),
        (
            removed(f"{META}/dataset.yaml", f"{META}/split.yaml"),
            "train",
            "not completely prepared: .nv-meta has no split.yaml, dataset.yaml; prepare",
        ),
        (removed("train-000000.tar"), "train", "pictures: missing: train-000000.tar; prepare it again"),
        (
            removed("train-000000.tar.idx"),
            "train",
            "pictures: missing: train-000000.tar.idx; prepare it again",
        ),
        (
            written("train-000000.tar.idx", bytes(8)),
            "train",
            "pictures: cut off, or written after it was prep",
        ),
        (
            written("train-000000.tar.idx", b""),
            "train",
            "pictures: cut off, or written after it was prepared",
        ),
        (
            written("train-000000.tar.idx", bytes(96) + b"\1" + bytes(7)),
            "train",
            ": train-000000.tar; write the",
        ),
        (replaced(".info.json", "{"), "train", ".info.json: not JSON: "),
        (replaced(".info.json", "[]"), "train", ".info.json: not a mapping"),
        (replaced(".info.json", '{"shard_counts": {"a": "12"}}'), "train", ".info.json: no `shard_counts`"),
        (replaced(".info.json", '{"shard_counts": {}}'), "train", "does not list train-000000.tar"),
        (replaced("split.yaml", "split_parts: ["), "train", ": not YAML: "),
        (replaced("split.yaml", "train: []"), "train", "split.yaml: no `split_parts`"),
        (replaced("split.yaml", "split_parts: {train: a.tar}"), "train", "is not a list of names"),
        (replaced("split.yaml", "split_parts: {train: [{a: 1}]}"), "train", "is not a list of names"),
        (replaced("split.yaml", "split_parts: {train: []}"), "train", "the split `train` has no samples"),
        (
            replaced("split.yaml", "split_parts: {train: [train-000000.tar]}\nexclude: [train-000000.tar]"),
            "train",
            "the split `train` has no samples",
        ),
        (
            replaced("dataset.yaml", "__module__: megatron.energon\n__class__: CaptioningWebdataset\n"),
            "train",
            "samples of `CaptioningWebdataset` of `megatron.energon` are not read",
        ),
        (
            replaced("dataset.yaml", "__module__: os\n__class__: CrudeWebdataset\n"),
            "train",
            "samples of `CrudeWebdataset` of `os` are not read",
        ),
        (
            lambda folder: (folder / META / "split.yaml").write_bytes(b"\xff\xfe\0"),
            "train",
            "not a text in UTF-8",
        ),
    ],
)
def test_what_is_wrong_with_a_folder(
    folder: Path, damage: Callable[[Path], object] | None, split: str, says: str
) -> None:
    if damage:
        damage(folder)
    (what,) = wrong(folder, split)
    assert says in what


def test_folders_that_are_not_prepared(tmp_path: Path) -> None:
    path = tmp_path / "data"
    assert wrong(path) == ["data: no such Energon folder, or blend of several (a YAML file)"]
    path.mkdir()
    assert wrong(path) == ["data: empty; tools/datasets/llava.py makes one of pictures and conversations"]
    (path / "a.jpg").touch()
    assert "no Energon folder (no shards and no .nv-meta)" in wrong(path)[0]
    write_folder(path / "energon", {"train": 1})
    assert wrong(path)[0].endswith("did you mean " + str(path / "energon").replace(f"{tmp_path}/", "") + "?")
    (path / "a.tar").touch()
    assert "not prepared: no .nv-meta; run `energon prepare" in wrong(path)[0]
    (path / "unfinished").mkdir()
    assert "has not finished it; run the same command again" in wrong(path)[0]


@pytest.mark.parametrize("is_prepared", [True, False])
def test_samples_that_v060_tokenised_are_refused(folder: Path, is_prepared: bool) -> None:
    with tarfile.open(folder / "train-000000.tar", "w") as shard:
        shard.addfile(tarfile.TarInfo("0.sequence.pyd"), io.BytesIO())
    if not is_prepared:
        for file in (folder / META).iterdir():
            file.unlink()
        (folder / META).rmdir()
    assert wrong(folder) == [
        "pictures/train-000000.tar: its samples were tokenised before the training, as FlagScale v0.6.0 did; "
        "make the folder again from the pictures, with tools/datasets/llava.py"
    ]


def test_shards_in_folders_that_v060_tokenised_are_refused(folder: Path) -> None:
    (folder / "parts").mkdir()
    with tarfile.open(folder / "parts" / "a.tar", "w") as shard:
        shard.addfile(tarfile.TarInfo("0.sequence.pyd"), io.BytesIO())
    for file in folder.glob("*.tar*"):
        file.unlink()
    assert wrong(folder)[0].startswith("pictures/parts/a.tar: its samples were tokenised")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{000..002}.tar", ["a-000.tar", "a-001.tar", "a-002.tar"]),
        ("a-{9..11}", ["a-9", "a-10", "a-11"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("{a{0..1},b}", ["a0", "b", "a1", "b"]),
        ("{x}", ["{x}"]),
    ],
)
def test_patterns_with_braces(pattern: str, names: list[str]) -> None:
    assert list(expanded(pattern)) == names


def test_facts_of_our_tool(folder: Path) -> None:
    (folder / "facts.json").write_text(json.dumps({"splits": {"train": {"sizes": [[1, 2]]}}}))
    assert facts_of(FolderSplit(folder, "train")) == {"sizes": [[1, 2]]}
    assert facts_of(FolderSplit(folder, "val")) == {}
