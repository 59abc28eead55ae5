"""`--overwrite` replaces the target completely, and deletes nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flagscale.errors import UserError
from flagscale_testing.conversion import same
from megatron.flagscale.convert.convert import convert

Models = Callable[[str], Path]


@pytest.mark.parametrize("save", ["source", "source/../source", "."])
def test_overwriting_never_deletes_the_source(save: str, models: Models, tmp_path: Path) -> None:
    source = Path(shutil.copytree(models("Llama 2") / "hf", tmp_path / "parent" / "source"))
    with pytest.raises(UserError, match=r"would delete the source"):
        convert(source, source.parent / save, overwrite=True)
    assert same(source, models("Llama 2") / "hf")
    assert list(source.parent.iterdir()) == [source]


def test_a_folder_is_replaced_through_any_path(models: Models, tmp_path: Path) -> None:
    """The path leads through the folder that is renamed meanwhile."""
    for _ in range(2):
        convert(models("Llama 2") / "hf", tmp_path / "made", overwrite=True)
        convert(models("Llama 2") / "hf", tmp_path / "made" / ".." / "made", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_file_is_not_replaced_by_a_folder(models: Models, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "loop_of_a_file").symlink_to("loop_of_a_file")
    for save in ("file", "file/made", "loop_of_a_file"):
        with pytest.raises(UserError, match=r"file: not a folder"):
            convert(models("Llama 2") / "hf", tmp_path / save, overwrite=True)
    assert (tmp_path / "file").read_text() == "kept"


def test_what_a_killed_replacement_left_does_not_stop_the_next(models: Models, tmp_path: Path) -> None:
    for name in ("made", ".made.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").write_text("old")
    convert(models("Llama 2") / "hf", tmp_path / "made", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert not (tmp_path / "made" / "old").exists()
