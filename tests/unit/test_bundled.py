"""Examples that a command copies, and tools that it runs; in a clone both lie at its root."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flagscale import bundled, cli

ROOT = Path(__file__).parents[2]


def test_an_example_is_copied_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["examples", "aquila"]) == 0
    source, copy = ROOT / "examples" / "aquila", tmp_path / "examples" / "aquila"
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    assert [path.read_bytes() for path in map(copy.joinpath, files)] == [
        path.read_bytes() for path in map(source.joinpath, files)
    ]
    printed = capsys.readouterr().out
    assert all(f"examples/aquila/{file}" in printed.splitlines() for file in files)
    assert "--config-path ./examples/aquila/conf --config-name config action=dryrun" in printed


def test_what_the_user_has_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "aquila" / "mine"
    mine.mkdir(parents=True)
    assert cli.main(["examples", "aquila", "--to", str(tmp_path)]) == 2
    assert f"{tmp_path / 'aquila'}: already exists" in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == [mine.parent, mine]
    assert cli.main(["examples", "aquila", "--to", str(mine)]) == 0


def test_a_link_that_leads_nowhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "aquila").symlink_to(tmp_path / "elsewhere")
    assert cli.main(["examples", "aquila", "--to", str(tmp_path)]) == 2
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["examples", "aqila"], "did you mean `aquila`?"),
        (["examples", "../examples/aquila"], "no example"),
        (["tools/datasets/dmo.py"], "did you mean `tools/datasets/demo.py`?"),
        (["tools/command.py"], "no such tool"),
        (["examples", "--frm", "x"], "unrecognized arguments"),
    ],
)
def test_a_wrong_name_is_reported(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert told in capsys.readouterr().err


def test_names_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["examples"]) == 0
    assert cli.main(["tools"]) == 0
    assert cli.main(["examples", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "aquila" in lines
    assert any(line.startswith("tools/checkpoint/convert.py ") for line in lines)


def test_a_tool_ends_with_its_own_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "run.py"), "tools/datasets/verify.py", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "none" in done.stderr


def test_an_override_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tools/of=mine", "action=run"]) == 2
    assert "no experiment named" in capsys.readouterr().err


def test_every_tool_says_first_what_it_does() -> None:
    for name in bundled.tool_names():
        assert (ROOT / name).read_text().startswith(('"""', "#!"))
