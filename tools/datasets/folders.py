"""A folder that one process writes at a time, and its JSON file that records how its files were made."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from flagscale import files
from flagscale.errors import UserError


def locked(folder: Path) -> AbstractContextManager[None]:
    """Create `folder` and lock out other processes; the lock ends with the process, however that ends."""
    if wrong := files.not_a_folder(folder):
        raise UserError(f"{wrong}: is not a folder; choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    busy = UserError(f"{folder}: another process is preparing data here; wait until it ends")
    return files.locked(folder, busy=busy)


def write_json(path: Path, content: Any) -> None:
    """Write the whole file or nothing."""
    files.write_atomic(path, json.dumps(content, indent=2))


def read_json(path: Path) -> Any:
    """Return the content, or None if the file does not exist."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise UserError(f"{path}: not readable JSON; --overwrite rebuilds everything") from None


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
