"""`action=checkpoints`: the list of a training's checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flagscale import cli
from flagscale.run.checkpoint_list import list_checkpoints, losses_of
from flagscale.run.checkpoints import RELEASE, TRACKER, folder_of
from flagscale.run.manifest import write_manifest
from flagscale.run.retention import Retention
from tests.unit.conftest import TINY_JOB
from tests.unit.test_retention import save

METRICS = [
    {"iteration": 10, "lm_loss": 5.25, "iteration_ms": 1.0},
    {"iteration": 10, "validation_loss": 5.5},
    {"iteration": 25, "lm_loss": 4.0, "iteration_ms": 1.0},
]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return the checkpoints of a run: of 10, 20 and 30 complete ones, the last one damaged later."""
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS) + '{"iter')
    saved = tmp_path / "checkpoints"
    save(saved, 10, 20, 30)
    (saved / folder_of(30) / "weights").write_bytes(bytes(99))
    (saved / folder_of(40)).mkdir()
    (saved / "iter_0000005.removing").mkdir()
    (saved / "notes").mkdir()
    return saved


def states(directory: Path, retention: Retention | None, wanted: int | None = None) -> dict[str, str]:
    return {
        one.name.removeprefix("iter_00000"): one.fault or one.kept_by + (" *" if one.loads else "")
        for one in list_checkpoints(directory, None, retention, wanted)
    }


def test_each_checkpoint_is_complete_or_says_why_not_and_why_it_is_kept(directory: Path) -> None:
    being_removed = "being removed; a run that was interrupted finishes that after its next save"
    faults = {
        "05.removing": being_removed,
        "30": "weights has 99 bytes instead of 100",
        "40": "its save was not finished",
    }
    assert states(directory, None) == faults | {"10": "all are kept", "20": "all are kept *"}
    assert states(directory, Retention(1)) == faults | {"10": "", "20": "the run started from it *"}
    assert states(directory, Retention(2), 10) == faults | {
        "10": "the run started from it *",
        "20": "keep_last 2",
    }
    assert [*states(directory, None)] == ["05.removing", "10", "20", "30", "40"]


def test_a_checkpoint_without_an_iteration_is_loaded_if_the_tracker_names_it(directory: Path) -> None:
    (directory / RELEASE).mkdir()
    write_manifest(directory / RELEASE)
    assert states(directory, None)[RELEASE] == "not saved by a training"
    (directory / TRACKER).write_text(RELEASE)
    found = states(directory, Retention(1))
    assert (found[RELEASE], found["10"]) == ("not saved by a training *", "all are kept")


def test_the_loss_is_that_of_the_iteration_itself(directory: Path) -> None:
    assert losses_of(directory.parent / "metrics.jsonl") == {10: 5.25, 25: 4.0}
    assert losses_of(directory / "nothing") == losses_of(None) == {}


def test_the_action_prints_a_table_or_json(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    folder = directory.parent
    for name in ("10", "20"):
        os.utime(directory / f"iter_00000{name}" / "manifest.json", (1e9, 1e9))
    (folder / "tiny.yaml").write_text(TINY_JOB.format(exp_dir=folder))
    words = [f"--config-path={folder}", "--config-name=tiny", "action=checkpoints", "+train.keep_last=1"]
    assert cli.main(words) == 0
    head, titles, *rows, end = capsys.readouterr().out.splitlines()
    assert head.startswith(f"{directory}: 5 checkpoints, ")
    assert titles.split() == ["iteration", "size", "saved", "loss", "state"]
    assert rows[1].endswith("2001-09-09 01:46:40  5.2500  complete; removed after a later save")
    assert rows[2].endswith("-  complete; the run started from it")
    assert end == "  a run that resumes from here loads iter_0000020"
    assert cli.main([*words, "output=json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["directories"]
    assert [row["iteration"] for row in one["checkpoints"]] == [None, 10, 20, 30, 40]
    assert one["checkpoints"][1]["loss"] == 5.25
    assert one["checkpoints"][1]["nbytes"] > 100


def test_folders_that_are_not_there_and_other_jobs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY_JOB.format(exp_dir=tmp_path / "run"))
    words = [f"--config-path={tmp_path}", "--config-name=tiny", "action=checkpoints"]
    assert cli.main([*words, f"+train.load={tmp_path}"]) == 0
    printed = capsys.readouterr()
    assert f"no checkpoints: {tmp_path / 'run/checkpoints'} does not exist on this host" in printed.err
    assert "a run that resumes from here loads no checkpoint" in printed.out
    assert cli.main(words) == 3
    assert cli.main([*words, "+train.keep_last=two"]) == 2
    assert "keep_last" in capsys.readouterr().err
    assert cli.main([*words, "experiment.task.backend=vllm", "experiment.task.type=serve"]) == 2
