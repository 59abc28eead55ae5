"""The facts of a finished `.bin/.idx` pair, in `<prefix>.json`: sizes, largest id, tokenizer and a sample.

`identity` ties the facts to the bytes of the pair, so those of an older pair are never taken for a new one's.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from flagscale.checks.indexed import bin_path, idx_path
from flagscale.files import write_atomic

VERSION = 1
_BLOCK = 4096
_BLOCKS = 16


def facts_path(prefix: Path) -> Path:
    """Return the file of the facts of a prefix (which may itself contain dots)."""
    return prefix.with_name(prefix.name + ".json")


def facts(prefix: Path) -> dict[str, Any] | None:
    """Return the facts of a pair; None if missing, unreadable, or of other bytes or another version."""
    try:
        known: dict[str, Any] = json.loads(facts_path(prefix).read_text(encoding="utf-8"))
        sample = known["sample"]
        types = (known["largest_id"], int), (known["vocabulary"], int), (known["tokenizers"], list)
        is_sound = all(isinstance(*pair) for pair in (*types, (sample["text"], str), (sample["ids"], list)))
        matches = known["version"] == VERSION and known["identity"] == identity(prefix)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known if matches and is_sound else None


def write_facts(prefix: Path, values: Mapping[str, Any]) -> None:
    """Write the facts of a finished pair, with their version and the pair's identity."""
    known = {"version": VERSION, **values, "identity": identity(prefix)}
    write_atomic(facts_path(prefix), json.dumps(known, indent=2))


def identity(prefix: Path) -> str:
    """Return a hash of the sizes and of some blocks of both files, which takes little time for any size.

    It does not depend on modification times. Raises OSError if a file cannot be read.
    """
    found = [(path, path.stat()) for path in (idx_path(prefix), bin_path(prefix))]
    return _identity(tuple((path, stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in found))


@lru_cache(maxsize=4096)
def _identity(files: tuple[tuple[Path, int, int, int], ...]) -> str:
    """Return the hash of files, given as path, size, modification time and inode; kept until they change."""
    digest = hashlib.sha256()
    for path, size, *_ in files:
        digest.update(f"{size};".encode())
        last = max(0, size - _BLOCK)
        with path.open("rb") as file:
            for position in sorted({last * step // (_BLOCKS + 1) for step in range(_BLOCKS + 2)}):
                file.seek(position)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()
