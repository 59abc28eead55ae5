"""Which checkpoints are kept, and that removing the others never leaves half a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagscale.run import retention
from flagscale.run.checkpoints import RELEASE, TRACKER, folder_of, write_arguments
from flagscale.run.manifest import candidates, write_manifest
from flagscale.run.retention import Retention, left_over, remove_rest, set_aside, why_kept


def save(directory: Path, *iterations: int) -> None:
    """Save as a training does: files, record, manifest, tracker."""
    for iteration in iterations:
        folder = directory / folder_of(iteration)
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(bytes(100))
        write_arguments(folder, {})
        write_manifest(folder)
        (directory / TRACKER).write_text(str(iteration))


def names(directory: Path) -> list[str]:
    return sorted(one.name.removeprefix("iter_00000") for one in directory.iterdir() if one.is_dir())


@pytest.mark.parametrize(
    ("kept", "newest", "rule", "started_from", "expected"),
    [
        ((2, 4, 6, 8), 8, Retention(1), None, {8}),
        ((2, 4, 6, 8), 8, Retention(2), None, {6, 8}),
        ((2, 4, 6, 8), 8, Retention(9), None, {2, 4, 6, 8}),
        ((2, 4, 6, 8), 8, Retention(1, 4), None, {4, 8}),
        ((2, 4, 6, 8), 8, Retention(1), 4, {4, 8}),
        ((2, 4, 6, 8), 8, Retention(1), 5, {8}),
        # The training was set back to 2 and has saved 4 anew: 6 and 8 are of the training before.
        ((2, 4, 6, 8), 4, Retention(1), 2, {2, 4, 6, 8}),
        ((), 8, Retention(1), None, set()),
    ],
)
def test_what_is_kept(
    kept: tuple[int, ...], newest: int, rule: Retention, started_from: int | None, expected: set[int]
) -> None:
    assert set(why_kept(kept, newest, rule, started_from)) == expected


def test_each_kept_checkpoint_has_one_reason() -> None:
    assert why_kept((1, 2, 4, 6, 7, 8, 9), 8, Retention(2, 4), 1) == {
        1: "the run started from it",
        4: "keep_every 4",
        7: "keep_last 2",
        8: "the newest",
        9: "newer than the tracker's",
    }


def test_older_ones_are_renamed_and_then_deleted(tmp_path: Path) -> None:
    save(tmp_path, 10, 20, 30, 40)
    set_aside(tmp_path, Retention(2))
    assert names(tmp_path) == ["10.removing", "20.removing", "30", "40"]
    assert [one.iteration for one in candidates(tmp_path)] == [40, 30]
    remove_rest(tmp_path)
    assert names(tmp_path) == ["30", "40"]


def test_what_no_training_has_saved_there_stays(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    save(elsewhere, 10)
    saved = tmp_path / "saved"
    save(saved, 20, 30, 40)
    (saved / folder_of(10)).symlink_to(elsewhere / folder_of(10))
    (saved / folder_of(15)).mkdir()  # of an interrupted save
    write_manifest(saved / folder_of(15))  # and that of a converted one, which has no record of a training
    (saved / folder_of(17)).mkdir()
    (saved / RELEASE).mkdir()
    (saved / "iter_0000020.damaged").mkdir()
    (saved / "notes").mkdir()
    set_aside(saved, Retention(1))
    remove_rest(saved)
    assert names(saved) == ["10", "15", "17", "20.damaged", "40", "notes", RELEASE]
    assert (elsewhere / folder_of(10)).is_dir()


@pytest.mark.parametrize("tracker", [None, RELEASE, "50", "", "x"])
def test_nothing_is_removed_if_the_tracker_names_no_complete_checkpoint(
    tmp_path: Path, tracker: str | None
) -> None:
    save(tmp_path, 10, 20)
    (tmp_path / folder_of(50)).mkdir()  # without a manifest
    (tmp_path / TRACKER).unlink() if tracker is None else (tmp_path / TRACKER).write_text(tracker)
    set_aside(tmp_path, Retention(1))
    assert left_over(tmp_path) == []


def test_an_interrupted_deletion_is_finished_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 10, 20)
    set_aside(tmp_path, Retention(1))

    def killed(folder: Path) -> None:
        (folder / "weights").unlink()
        raise OSError("as if the process had ended")

    with monkeypatch.context() as patch:
        patch.setattr(retention.shutil, "rmtree", killed)
        with pytest.raises(OSError, match="ended"):
            remove_rest(tmp_path)
    assert [one.iteration for one in candidates(tmp_path)] == [20]
    # The training was started again from 0 meanwhile, and has saved 10 and 20 again.
    save(tmp_path, 30)
    (tmp_path / folder_of(20)).rename(tmp_path / folder_of(10))
    set_aside(tmp_path, Retention(1))
    remove_rest(tmp_path)
    assert names(tmp_path) == ["30"]
