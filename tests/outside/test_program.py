"""A user's own training program: a `.py` with its own arguments, data and forward step."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RUN = HERE.parents[1] / "run.py"
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the user's folder; nothing is installed."""
    return Path(shutil.copytree(HERE / "program", tmp_path / "mine"))


@pytest.fixture
def command(folder: Path, tmp_path: Path) -> Command:
    """Return a function that runs FlagScale in the user's folder, with a separate cache."""

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        return subprocess.run(
            [
                sys.executable,
                str(RUN),
                "--config-path",
                str(folder / "conf"),
                "--config-name",
                "config",
                *words,
            ],
            cwd=folder,
            env={**inherited, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return command


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_keys_of_the_program_become_arguments(command: Command, folder: Path, tmp_path: Path) -> None:
    done = command("train.rows.score_question=false")
    assert done.returncode == 0, done.stderr
    for shown in ("./train_mine.py", "--row-digits 7", "--row-task reverse", "--row-values 1 2 3 4"):
        assert shown in done.stdout
    assert "--score-question" not in done.stdout
    written = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(folder)]
    assert [path.parent for path in written] == [tmp_path / "cache/flagscale/programs"]
    assert not (folder / "outputs").exists()


def test_a_misspelt_key_is_reported_with_the_nearest_name(command: Command, folder: Path) -> None:
    edit(folder / "conf/train/rows.yaml", "row_digits:", "row_digit:")
    done = command()
    assert done.returncode == 2
    assert "conf/train/rows.yaml:2: train.rows.row_digit: neither megatron-core" in done.stderr
    assert "nor `./train_mine.py` has an argument `row_digit`" in done.stderr
    assert "did you mean `row_digits`?" in done.stderr


@pytest.mark.parametrize(
    ("override", "reported"),
    [
        ("train.rows.row_digits=seven", "`row_digits` takes a whole number, not 'seven'"),
        ("train.rows.row_task=revers", "`row_task` cannot be 'revers'; did you mean `reverse`?"),
        ("train.rows.row_values=[1,x]", "`row_values` takes a whole number, not 'x'"),
        ("train.rows.score_question=2", "`score_question` is a switch: use true or false, not 2"),
        ("train.model.vocab_size=null", "NullTokenizer needs `vocab_size`"),
    ],
)
def test_a_wrong_value_is_refused_before_launch(command: Command, override: str, reported: str) -> None:
    done = command("action=run", override)
    assert done.returncode == 2
    assert reported in done.stderr


def test_a_program_without_datasets_of_its_own_must_be_given_data(command: Command, folder: Path) -> None:
    edit(folder / "train_mine.py", " datasets=datasets,", "")
    done = command()
    assert done.returncode == 2
    assert "no data: give `data_path`" in done.stderr


def test_an_engine_imported_at_the_top_is_refused_with_the_line_to_move(
    command: Command, folder: Path
) -> None:
    edit(
        folder / "train_mine.py",
        "import sys\n",
        f"import sys\nopen({str(folder / 'ran')!r}, 'w')\nimport torch\n",
    )
    done = command()
    assert done.returncode == 2
    assert "train_mine.py:6: imports `torch` at the top" in done.stderr
    assert "move this line" in done.stderr
    assert not (folder / "ran").exists()


def test_an_engine_imported_by_a_helper_module_is_refused(command: Command, folder: Path) -> None:
    edit(folder / "rows.py", "import random\n", "import random\nimport megatron.core\n")
    done = command()
    assert done.returncode == 2
    assert "train_mine.py:6: leads to an import of `megatron.core`" in done.stderr


def test_an_error_of_the_program_is_reported_with_its_line(command: Command, folder: Path) -> None:
    edit(folder / "train_mine.py", "default=7", "default=SEVEN")
    done = command()
    assert done.returncode == 2
    assert "train_mine.py:13: NameError: name 'SEVEN' is not defined" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_program_is_imported_once_until_its_files_change(command: Command, folder: Path) -> None:
    ran = folder / "ran"
    edit(folder / "train_mine.py", "import sys\n", f"import sys\nopen({str(ran)!r}, 'a').write('x')\n")
    for _ in range(2):
        assert command().returncode == 0
    assert ran.read_text() == "x"
    edit(folder / "rows.py", "SEPARATOR = 10", "SEPARATOR = 9")
    assert command().returncode == 0
    assert ran.read_text() == "xx"


def test_the_program_trains_saves_and_resumes(command: Command, folder: Path) -> None:
    first = command("action=test")
    assert first.returncode == 0, first.stdout + first.stderr
    assert (folder / "outputs/rows/checkpoints/latest_checkpointed_iteration.txt").read_text() == "8"
    second = command("action=test", "train.model.train_iters=10")
    assert second.returncode == 0, second.stdout + second.stderr
    lines = [json.loads(line) for line in (folder / "outputs/rows/metrics.jsonl").read_text().splitlines()]
    losses = {line["iteration"]: line["lm_loss"] for line in lines if "lm_loss" in line}
    assert list(losses) == list(range(1, 11))
    assert losses[10] < losses[8] + 0.2 < losses[1] - 1
