"""Write into a folder so that no kill and no second process leaves a partial file under a final name."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flagscale.errors import UserError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create `folder` and lock out other processes; the lock ends with the process, however that ends."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, not a folder; choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"{folder}: another process is preparing data here; wait until it ends") from None
    try:
        yield
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write the whole file or nothing."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Return the content, or None if the file does not exist."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise UserError(f"{path}: not readable JSON; --overwrite rebuilds everything") from None


def commit(temporary: Path, path: Path) -> None:
    """Rename a finished file to its final name, after its bytes have reached the disk."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def refuse_other(folder: Path, made: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise UserError, which lists the differences, unless the folder was made with the same settings."""
    changed = [name for name in sorted({*made, *asked}) if made.get(name) != asked.get(name)]
    if changed:
        changes = ", ".join(
            f"{name} {_short(made.get(name))} (now {_short(asked.get(name))})" for name in changed
        )
        raise UserError(
            f"{folder}: made with other settings: {changes}; choose another --output, or --overwrite it"
        )


def _short(value: Any) -> str:
    return value[:8] if isinstance(value, str) else str(value)
