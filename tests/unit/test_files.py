"""Files are complete or missing; locks are released when their holder ends."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from flagscale import files
from flagscale.errors import FlagScaleError
from flagscale.files import locked, not_a_folder, put_in_place, write_atomic


def test_a_file_is_written_with_its_folders_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "a b" / "c" / "file.json"
    write_atomic(path, "ü\n")
    assert path.read_text() == "ü\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    write_atomic(path, "secret", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_can_be_made_below_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for name in ("file", "loop"):
        assert not_a_folder(tmp_path / name) == not_a_folder(tmp_path / name / "new") == tmp_path / name
    assert not_a_folder(tmp_path) is not_a_folder(tmp_path / "new" / "newer") is None


def test_names_that_are_not_utf8_are_written_unchanged(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    write_atomic(tmp_path / name / "file", name)
    assert (tmp_path / name / "file").read_bytes() == b"caf\xe9"


@pytest.mark.parametrize("broken", ["fsync", "replace", "fchmod"])
def test_an_error_leaves_only_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_text() == "old"


def test_a_file_that_was_written_elsewhere_replaces_the_old_one(tmp_path: Path) -> None:
    for name in ("temporary", "file"):
        (tmp_path / name).write_text(name)
    put_in_place(tmp_path / "temporary", tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "temporary"


def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    program = (
        "import os, signal, sys, pathlib; from flagscale.files import write_atomic\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomic(pathlib.Path(sys.argv[1]), 'new')"
    )
    assert (
        subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -signal.SIGKILL
    )
    assert path.read_text() == "old"


def test_a_lock_has_one_holder_and_is_released_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    busy = FlagScaleError("wait for it")
    for held in (path, path.parent):
        with (
            locked(held, busy=busy),
            pytest.raises(FlagScaleError, match="wait for it"),
            locked(held, busy=busy),
        ):
            pass
        with pytest.raises(ZeroDivisionError), locked(held, busy=busy):
            raise ZeroDivisionError
        with locked(held):
            pass
    assert os.listdir(path.parent) == ["lock"]


def test_room_for_as_many_connections_as_the_host_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1024, 4096)]
    monkeypatch.setattr(files.resource, "getrlimit", lambda what: limits[-1])
    monkeypatch.setattr(files.resource, "setrlimit", lambda what, pair: limits.append(pair))
    files.room_for_files(64)
    assert limits == [(1024, 4096)]
    files.room_for_files(400)
    files.room_for_files(100)
    files.room_for_files(10_000)
    assert limits == [(1024, 4096), (3456, 4096), (4096, 4096)]
    unlimited = files.resource.RLIM_INFINITY
    limits.append((256, unlimited))
    files.room_for_files(100)
    assert limits[-1] == (1056, unlimited)
    limits.append((unlimited, unlimited))
    files.room_for_files(10_000)
    assert limits[-1] == (unlimited, unlimited)
