"""`--async-save` on CPU: training continues, and no checkpoint is visible before it is complete."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from flagscale.node.processes import alive
from flagscale.run.checkpoints import TRACKER
from flagscale.run.manifest import MANIFEST, fault_of
from flagscale_testing.ranks.training import (
    MOCK_DATA,
    MODEL,
    PATIENCE,
    ended_at_last,
    environment,
    read_metrics,
    torchrun,
    train,
    wait_for,
)

GATED = """
import os, time
from pathlib import Path
from megatron.flagscale.chips import forked_save
fsync, write = os.fsync, forked_save._write
def gated(*args, **kwargs):
    gate = Path("gate of " + max(Path("saved").glob("iter_*")).name)
    def wait(file):
        while not gate.exists():
            time.sleep(0.05)
        fsync(file)
    os.fsync = wait
    write(*args, **kwargs)
forked_save._write = gated
"""
"""No file of a checkpoint is synced to disk before the checkpoint's gate is opened."""
SMALL_FILES = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))"
SAVED = f"successfully saved checkpoint from iteration {2:7d}"
LAYOUT = ["--tensor-model-parallel-size", "2", "--train-iters", "6", "--save-interval", "2", "--async-save"]


def start(folder: Path, prelude: str, *argv: str) -> subprocess.Popen[bytes]:
    """Start training on two ranks, each of which runs `prelude` first."""
    folder.mkdir(exist_ok=True)
    program = "import sys, runpy; sys.argv = ['train_gpt', *sys.argv[1:]]\n" + prelude
    program += "\nrunpy.run_module('megatron.flagscale.train_gpt', run_name='__main__')\n"
    (folder / "program.py").write_text(
        "from megatron.flagscale.supervision import die_with_parent\ndie_with_parent()\n"
        f"if __name__ == '__main__':\n    exec({program!r})\n"
    )
    paths = ["--save", str(folder / "saved"), "--load", str(folder / "saved")]
    more = ["--metrics-file", str(folder / "metrics.jsonl"), *paths, *argv]
    with (folder / "output").open("w") as output:
        return subprocess.Popen(
            torchrun(2, str(folder / "program.py"), *MODEL, *MOCK_DATA, *LAYOUT, *more),
            stdout=output,
            stderr=output,
            cwd=folder,
            env=environment(FLAGSCALE_FAILURE_FILE=str(folder / "failure.json")),
        )


def wait_for_iteration(folder: Path, iteration: int) -> None:
    try:
        wait_for(lambda: len(read_metrics(folder / "metrics.jsonl")) >= iteration)
    except AssertionError:
        raise AssertionError((folder / "output").read_text()[-4000:]) from None


def finish(process: subprocess.Popen[bytes], folder: Path) -> str:
    """Wait for a run to end and return its output."""
    process.wait(PATIENCE)
    return (folder / "output").read_text()


def open_gate(folder: Path, iteration: int) -> None:
    (folder / f"gate of iter_{iteration:07d}").touch()


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Complete a run in which each checkpoint reaches the disk one iteration later."""
    folder = tmp_path_factory.mktemp("slow")
    with ended_at_last(start(folder, GATED)) as process:
        for saved in (2, 4, 6):
            wait_for_iteration(folder, min(saved + 1, 6))
            open_gate(folder, saved)
        output = finish(process, folder)
    assert process.returncode == 0, output[-4000:]
    return folder


def losses(folder: Path) -> dict[int, float]:
    return {line["iteration"]: line["lm_loss"] for line in read_metrics(folder / "metrics.jsonl")}


@pytest.mark.slow
def test_training_continues_while_files_are_written(slow: Path) -> None:
    output = (slow / "output").read_text()
    assert output.index("iteration 3/6 | loss") < output.index(SAVED)
    assert sorted(losses(slow)) == list(range(1, 7))


def test_the_end_waits_for_the_last_save(slow: Path) -> None:
    assert (slow / "saved" / TRACKER).read_text() == "6"
    for iteration in (2, 4, 6):
        folder = slow / "saved" / f"iter_{iteration:07d}"
        assert (folder / MANIFEST).is_file()
        assert "metadata.json" in json.loads((folder / MANIFEST).read_text())["files"]
        assert fault_of(folder) == ""


@pytest.mark.slow
def test_a_kill_while_files_are_written_keeps_older_checkpoints(slow: Path, tmp_path: Path) -> None:
    partial = tmp_path / "saved" / "iter_0000004"
    with ended_at_last(start(tmp_path, GATED)) as process:
        open_gate(tmp_path, 2)
        wait_for_iteration(tmp_path, 5)
        assert partial.is_dir()
        assert not (partial / MANIFEST).exists()
        assert (tmp_path / "saved" / TRACKER).read_text() == "2"
        ranks_and_writers = psutil.Process(process.pid).children(recursive=True)
    wait_for(lambda: not any(map(alive, ranks_and_writers)))
    (tmp_path / "metrics.jsonl").unlink()

    paths = ["--save", str(tmp_path / "saved"), "--load", str(tmp_path / "saved")]
    ended = train(tmp_path, 2, *MOCK_DATA, *LAYOUT, *paths)

    assert ended.code == 0, ended.output[-4000:]
    assert f"removed {partial}: its save was not finished" in ended.output
    # The writer saved the state of iteration 2, even though training had continued.
    expected = losses(slow)
    assert ended.losses() == pytest.approx({i: expected[i] for i in range(3, 7)}, abs=1e-5)
    assert (tmp_path / "saved" / TRACKER).read_text() == "6"


def test_sigterm_waits_for_the_save_in_progress(tmp_path: Path) -> None:
    with ended_at_last(start(tmp_path, GATED, "--train-iters", "100000", "--exit-signal-handler")) as process:
        wait_for_iteration(tmp_path, 3)
        process.send_signal(signal.SIGTERM)
        for iteration in range(2, 10):  # whichever is the last one
            open_gate(tmp_path, iteration)
        output = finish(process, tmp_path)
    assert process.returncode == 0, output[-4000:]
    last = max(losses(tmp_path))
    assert SAVED in output
    assert (tmp_path / "saved" / TRACKER).read_text() == str(last)
    assert fault_of(tmp_path / "saved" / f"iter_{last:07d}") == ""


@pytest.mark.slow  # test_endings.py has a full disk without async_save
def test_a_full_disk_ends_the_run_with_one_message(tmp_path: Path) -> None:
    """A file size limit stands in for a full disk."""
    with ended_at_last(start(tmp_path, SMALL_FILES)) as process:
        finish(process, tmp_path)
    assert process.returncode == 1
    reported = json.loads((tmp_path / "failure.json").read_text())
    assert reported["exitcode"] == 2
    assert "the checkpoint of iteration 2 could not be written" in reported["message"]
    assert "File too large" in reported["message"]
    assert list((tmp_path / "saved").iterdir()) == []
