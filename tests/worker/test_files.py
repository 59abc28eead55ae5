"""Pure rules about files: manifests, the choice of a checkpoint, metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flagscale.errors import UserError
from flagscale.run.checkpoints import TRACKER
from flagscale.run.manifest import MANIFEST, fault_of, write_manifest
from megatron.flagscale.checkpoint.choice import choose
from megatron.flagscale.checkpoint.save import write_fault
from megatron.flagscale.metrics.recorder import MetricsFile, progress_line


def checkpoint(directory: Path, iteration: int, sealed: bool = True, index: bool = True) -> Path:
    folder = directory / f"iter_{iteration:07d}"
    folder.mkdir(parents=True)
    (folder / "__0_0.distcp").write_bytes(bytes(range(256)) * 2000)
    if index:
        (folder / ".metadata").write_bytes(b"index")
        (folder / "metadata.json").write_text("{}")
    if sealed:
        write_manifest(folder)
    (directory / TRACKER).write_text(str(iteration))
    return folder


def test_a_complete_checkpoint_has_no_fault(tmp_path: Path) -> None:
    assert fault_of(checkpoint(tmp_path, 1)) == ""


@pytest.mark.parametrize("position", [0, 300_000, 511_998])
def test_a_changed_byte_is_found(tmp_path: Path, position: int) -> None:
    folder = checkpoint(tmp_path, 1)
    with (folder / "__0_0.distcp").open("r+b") as file:
        file.seek(position)
        file.write(b"\xff\x00")
    assert fault_of(folder) == "__0_0.distcp was changed after it was saved"


def test_missing_and_truncated_files_are_found(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 1)
    (folder / "__0_0.distcp").write_bytes(b"short")
    assert fault_of(folder) == "__0_0.distcp has 5 bytes instead of 512000"
    (folder / "__0_0.distcp").unlink()
    assert fault_of(folder) == "__0_0.distcp is missing"
    (folder / MANIFEST).write_text("{")
    assert fault_of(folder) == "manifest.json cannot be read"


def test_the_newest_complete_checkpoint_is_chosen(tmp_path: Path) -> None:
    for iteration in (1, 2, 10):
        checkpoint(tmp_path, iteration)
    assert choose(tmp_path, owned=True).iteration == 10


def test_without_a_manifest_the_index_file_decides(tmp_path: Path) -> None:
    checkpoint(tmp_path, 1, sealed=False)
    unfinished = checkpoint(tmp_path, 2, sealed=False, index=False)
    choice = choose(tmp_path, owned=True)
    assert choice.iteration == 1
    assert choice.notices == (f"removed {unfinished}: its save was not finished",)
    assert not unfinished.exists()
    assert (tmp_path / TRACKER).read_text() == "1"


def test_a_damaged_checkpoint_is_set_aside(tmp_path: Path) -> None:
    checkpoint(tmp_path, 1)
    damaged = checkpoint(tmp_path, 2)
    (damaged / ".metadata").unlink()
    choice = choose(tmp_path, owned=True)
    assert choice.iteration == 1
    assert "iter_0000002.damaged" in choice.notices[0]
    assert choice.notices[-1] == "falling back to the complete checkpoint of iteration 1"
    assert (tmp_path / "iter_0000002.damaged").is_dir()
    assert choose(tmp_path, owned=True).notices == ()


def test_a_folder_that_the_run_does_not_own_is_only_read(tmp_path: Path) -> None:
    checkpoint(tmp_path, 1)
    damaged = checkpoint(tmp_path, 2)
    (damaged / "__0_0.distcp").unlink()
    unfinished = checkpoint(tmp_path, 3, sealed=False, index=False)
    assert choose(tmp_path, owned=False).iteration == 1
    assert damaged.exists()
    assert unfinished.exists()
    assert (tmp_path / TRACKER).read_text() == "3"


def test_without_checkpoints_the_run_starts_from_scratch(tmp_path: Path) -> None:
    assert choose(tmp_path / "nowhere", owned=True).iteration is None
    unfinished = checkpoint(tmp_path, 1, sealed=False, index=False)
    (tmp_path / TRACKER).unlink()
    assert choose(tmp_path, owned=True).iteration is None
    assert not unfinished.exists()


def test_starting_over_damaged_checkpoints_is_refused(tmp_path: Path) -> None:
    (checkpoint(tmp_path, 1) / "__0_0.distcp").unlink()
    with pytest.raises(UserError, match=r"iter_0000001: __0_0\.distcp is missing"):
        choose(tmp_path, owned=True)


def test_a_requested_iteration_is_used_or_an_error(tmp_path: Path) -> None:
    checkpoint(tmp_path, 1)
    checkpoint(tmp_path, 2)
    assert choose(tmp_path, owned=True, wanted=1).iteration == 1
    assert (tmp_path / TRACKER).read_text() == "2"
    with pytest.raises(UserError, match="iteration 7"):
        choose(tmp_path, owned=True, wanted=7)


def test_the_reason_why_a_directory_is_not_writable(tmp_path: Path) -> None:
    assert write_fault(tmp_path) == ""
    assert write_fault(tmp_path / "nowhere") == "No such file or directory"


def test_metrics_of_lost_iterations_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.forget_after(3)
    for iteration in range(1, 6):
        metrics.append({"iteration": iteration, "lm_loss": 1 / 3})
    with path.open("a") as file:
        file.write('{"iteration": 2, "lm_l')
    metrics.forget_after(3)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2, 3]
    assert lines[0]["lm_loss"] == 1 / 3
    assert list(path.parent.iterdir()) == [path]


def test_the_progress_line() -> None:
    record = {
        "iteration": 120,
        "train_iters": 160,
        "lm_loss": 5.91234,
        "learning_rate": 2.9e-4,
        "grad_norm": 0.8123,
        "iteration_ms": 1310.0,
        "tokens_per_s": 3127.0,
        "skipped": 0,
    }
    figures = "loss 5.9123 | lr 2.90e-04 | grad norm 0.812 | 1.31 s/it | 3.13k tokens/s"
    assert progress_line(record) == f"iteration 120/160 | {figures} | 52s left"


def test_a_release_is_loaded_by_the_engine_if_it_is_complete(tmp_path: Path) -> None:
    checkpoint(tmp_path, 1).rename(tmp_path / "release")
    (tmp_path / TRACKER).write_text("release")
    assert choose(tmp_path, owned=False).iteration is None
    (tmp_path / "release" / "__0_0.distcp").unlink()
    with pytest.raises(UserError, match=r"release cannot be used: __0_0\.distcp is missing"):
        choose(tmp_path, owned=False)
