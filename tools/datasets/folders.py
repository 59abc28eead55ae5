"""A folder that one process at a time writes, and the JSON in it that says how its files were made."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from flagscale import files
from flagscale.errors import UserError


def locked(folder: Path) -> AbstractContextManager[None]:
    """Make `folder` and keep others out of it; the lock goes with the process, however that ends."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file is in the way; name another --output")
    folder.mkdir(parents=True, exist_ok=True)
    return files.locked(folder, busy=UserError(f"{folder}: another process prepares data here; wait for it"))


def write_json(path: Path, content: Any) -> None:
    """Write the whole file or nothing."""
    files.write_atomic(path, json.dumps(content, indent=2))


def read_json(path: Path) -> Any:
    """The content, or None where there is no file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise UserError(f"{path}: not readable JSON; --overwrite makes everything anew") from None


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
