"""A folder that appears complete under its name, or not at all; reading JSON."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flagscale.errors import UserError
from flagscale.files import locked


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; `UserError` if there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None


@contextmanager
def complete_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its name if the block succeeds; otherwise it is removed.

    Raises:
        UserError: `path` exists and `overwrite` is false, or another process is writing it.
    """
    if path.exists() and not overwrite:
        raise UserError(f"{path}: already exists; --overwrite replaces it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.converting")
    temporary.mkdir(exist_ok=True)
    busy = UserError(f"{path}: another conversion is writing it; wait until it ends")
    with locked(temporary, busy=busy):
        for left in temporary.iterdir():  # of a conversion that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield temporary
            _flush(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if path.exists():
            old = path.with_name(f".{path.name}.replaced")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
