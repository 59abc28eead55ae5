"""Write into a folder so that no kill and no second process leaves half a file under a final name."""

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
    """Make `folder` and keep others out of it; the lock goes with the process, however that ends."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file is in the way; name another --output")
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"{folder}: another process prepares data here; wait for it") from None
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
    """The content, or None where there is no file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise UserError(f"{path}: not readable JSON; --overwrite makes everything anew") from None


def commit(temporary: Path, path: Path) -> None:
    """Bring a finished file under its final name, its bytes on the disk first."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def refuse_other(folder: Path, made: dict[str, Any], asked: dict[str, Any]) -> None:
    """UserError that names what differs, unless what is there was made as it is asked for now."""
    changed = [name for name in sorted({*made, *asked}) if made.get(name) != asked.get(name)]
    if changed:
        told = ", ".join(
            f"{name} {_short(made.get(name))} (now {_short(asked.get(name))})" for name in changed
        )
        raise UserError(
            f"{folder}: made with other settings: {told}; --overwrite replaces it, or name another --output"
        )


def _short(value: Any) -> str:
    return value[:8] if isinstance(value, str) else str(value)
