"""Files of a run that a launcher writes and reads remotely."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from flagscale.errors import FlagScaleError
from flagscale.node import commands
from flagscale.node.files import packed, put
from flagscale.run.logs import read_piece
from flagscale.run.rundir import RunDir
from tests.unit.conftest import HOSTILE
from tests.unit.plans import make_plan, write_log


def test_put_writes_files_below_the_run_directory(tmp_path: Path) -> None:
    root = tmp_path / "not yet there"
    assert put(str(root), "logs/scripts/run.sh", "755", packed("text ü\n")) == {"ok": True}
    path = root / "logs/scripts/run.sh"
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("text ü\n", 0o755)
    put(str(root), "logs/pids/x.secrets.json", "600", packed("{}"))
    assert (root / "logs/pids/x.secrets.json").stat().st_mode & 0o777 == 0o600
    put(str(root), "logs/scripts/run.sh", "644", packed(""))
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("", 0o644)
    assert len([path for path in root.rglob("*") if path.is_file()]) == 2


@pytest.mark.parametrize("name", ["../x", "a/../../x", "link/x", "{outside}/x", "../run and more/x"])
def test_put_refuses_paths_outside_the_run_directory(tmp_path: Path, name: str) -> None:
    root, outside = tmp_path / "run", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "link").symlink_to(outside)
    before = sorted(tmp_path.rglob("*"))
    name = name.format(outside=outside)
    with pytest.raises(FlagScaleError, match="is not below"):
        put(str(root), name, "644", packed("text"))
    assert commands.execute(["put", str(root), name, "644", "text"])["ok"] is False
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("value", HOSTILE)
def test_put_accepts_any_name_of_a_run_directory(tmp_path: Path, value: str) -> None:
    root = tmp_path / f"run {value.replace('/', '_')}"
    assert put(str(root), f"x{value.replace('/', '_')}", "644", packed(value))["ok"]
    assert root.joinpath(f"x{value.replace('/', '_')}").read_bytes() == value.encode()


def test_put_follows_a_link_to_the_run_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert put(str(tmp_path / "link"), "plan.json", "644", packed("x"))["ok"]
    assert (tmp_path / "real" / "plan.json").read_text() == "x"


@pytest.mark.parametrize(
    ("position", "size", "piece"),
    [
        (0, 4, b"0123"),
        (8, 4, b"89"),
        (10, 4, b""),
        (99, 4, b""),
        (-3, 9, b"789"),
        (-99, 2, b"01"),
        (0, 0, b""),
    ],
)
def test_read_piece_returns_the_requested_bytes(
    tmp_path: Path, position: int, size: int, piece: bytes
) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    assert read_piece(tmp_path / "file", position, size) == (piece, 10)


def test_a_missing_file_reads_as_empty(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert read_piece(tmp_path / "none", 0, 9) == (b"", 0)
    assert read_piece(tmp_path / "file" / "none", 0, 9) == (b"", 0)


def test_commands_read_log_and_metrics(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, run_id="now")
    RunDir(tmp_path).write_launch(plan, {}, "", {})
    write_log(plan, 0, "before\n=== run now on localhost, today\n")
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\x00{}\n")
    words = [str(tmp_path), "0", "now"]
    assert commands.execute(["begin", *words]) == {"position": 7}
    reply = commands.execute(["read", *words, "metrics", "-5", "100"])
    assert (base64.b64decode(reply["data"]), reply["size"]) == (b"\xff\x00{}\n", 5)
    reply = commands.execute(["read", *words, "output", "7", "12"])
    assert base64.b64decode(reply["data"]) == b"=== run now "
