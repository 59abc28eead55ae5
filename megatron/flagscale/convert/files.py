"""Write a folder that appears complete under its name or not at all; read JSON."""

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


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raise `UserError` if it is missing, invalid, or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (IsADirectoryError, NotADirectoryError):
        raise UserError(f"{path}: not a file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: invalid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: an object in braces is expected, not {json.dumps(content)[:80]}")
    return content


@contextmanager
def complete_folder(path: Path, overwrite: bool, *sources: Path) -> Iterator[Path]:
    """Yield an empty folder next to `path`; rename it to `path` if the block succeeds, or else remove it.

    Raises:
        UserError: `path` exists and `overwrite` is false, it is not a folder, or it contains one of the
            `sources`; or another process is writing to it.
    """
    if path.exists() and not overwrite:
        raise UserError(f"{path}: already exists; use --overwrite to replace it")
    # `..` in it could lead through the folder that is renamed; `resolve` fails at a loop of links.
    path = Path(os.path.realpath(path))
    for source in sources:
        if path.exists() and source.resolve().is_relative_to(path):
            raise UserError(f"{path}: --overwrite would delete the source {source}; choose another folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{path.parent}: not a folder") from None
    if os.path.lexists(path) and not path.is_dir():
        raise UserError(f"{path}: not a folder")
    temporary = path.with_name(f".{path.name}.converting")
    temporary.mkdir(exist_ok=True)
    busy = UserError(f"{path}: another conversion is writing to it; wait until it ends")
    with locked(temporary, busy=busy):
        for left in temporary.iterdir():  # left behind by a conversion that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield temporary
            _flush(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if path.exists():
            old = path.with_name(f".{path.name}.replaced")
            shutil.rmtree(old, ignore_errors=True)  # left behind by a conversion that was killed
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
